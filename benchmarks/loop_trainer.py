"""The Trainer's side of `loop.py`: `loop_trainer.py DATASET`. A line on stdin is `bare` or `loop`, an answer seconds.

Rows of [CLS], 126 tokens and [SEP], masked by transformers' own collator. Weights are bf16, its faster way on CPUs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # output of libraries, also during imports, must not mix with answers

import torch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xlpretrain.data.storage.dataset import TokenDataset  # noqa: E402

STEPS, ROWS, LENGTH = 20, 16, 128


def main() -> None:
    """Serve until stdin ends."""
    dataset = TokenDataset.open(sys.argv[1])
    vocabulary = dataset.vocabulary
    names = {f"t{id}": id for id in range(vocabulary.size)}
    special = {"mask_token": vocabulary.mask, "cls_token": vocabulary.cls, "sep_token": vocabulary.sep}
    special |= {"pad_token": vocabulary.pad, "unk_token": vocabulary.unk}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(names, f"t{vocabulary.unk}")),
        **{key: f"t{id}" for key, id in special.items()},
    )
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=vocabulary.size,
            hidden_size=512,
            num_hidden_layers=6,
            num_attention_heads=8,
            intermediate_size=2048,
            hidden_act="gelu_new",
            max_position_embeddings=LENGTH,
            attn_implementation="sdpa",
        )
    ).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=ROWS,
                max_steps=100_000,
                logging_steps=10,
                save_steps=STEPS,
                save_total_limit=2,
                report_to="none",
                use_cpu=True,
                optim="adamw_torch_fused",
                disable_tqdm=True,
            ),
            train_dataset=Rows(dataset),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
            callbacks=[Turns()],
        )
        ANSWERS.write(f"{STEPS * ROWS * LENGTH}\n")
        trainer.train()


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokens of a dataset, split into samples."""

    def __init__(self, dataset: TokenDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return self._dataset.num_tokens // (LENGTH - 2)

    def __getitem__(self, index: int) -> dict[str, Any]:
        vocabulary, start = self._dataset.vocabulary, index * (LENGTH - 2)
        tokens = self._dataset.tokens(start, start + LENGTH - 2).tolist()
        return {"input_ids": [vocabulary.cls, *tokens, vocabulary.sep]}


class Turns(TrainerCallback):  # type: ignore[misc]
    """Callback that pauses the Trainer until its loop's turn."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        """Wait for the first turn."""
        self._wait(kept["model"], kept["train_dataloader"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        """Wait for the next turn, after the save of the preceding step."""
        if state.global_step and state.global_step % STEPS == 0:
            ANSWERS.write(f"{time.perf_counter() - self._started}\n")
            self._wait(kept["model"], kept["train_dataloader"])

    def _wait(self, model: Any, loader: Any) -> None:
        for line in sys.stdin:
            if line.strip() == "loop":
                self._started = time.perf_counter()
                return
            ANSWERS.write(f"{_bare(model, loader)}\n")
        os._exit(0)


def _bare(model: Any, loader: Any) -> float:
    batches = [batch for batch, _ in zip(loader, range(STEPS), strict=False)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=True)
    started = time.perf_counter()
    for batch in batches:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
