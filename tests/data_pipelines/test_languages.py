"""Corpora in several languages and scripts, from the source to six steps of every objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unicodedata import normalize

import commands
import numpy as np
import pytest
from built_datasets import build_dataset, write_jsonl
from languages import LANGUAGES

from xlpretrain.__main__ import main
from xlpretrain.config import run_config
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.objectives.base import Objective

SEQ_LEN, SAMPLES, STREAMS = 128, 480, 16
SIZES = {"num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 32}
MASKED = {"type": "masked_lm", "seq_len": SEQ_LEN}
MODELS: dict[str, dict[str, Any]] = {
    "albert": {"model": {"type": "albert", **SIZES, "d_embed": 8, "max_positions": SEQ_LEN}, "objective": MASKED},
    "bert": {
        "model": {"type": "bert", **SIZES, "max_positions": SEQ_LEN},
        "objective": {**MASKED, "sentence_task": "nsp"},
    },
    "xlnet": {
        "model": {"type": "xlnet", **SIZES, "mem_len": 16},
        "objective": {
            "type": "permutation_lm",
            "seq_len": SEQ_LEN,
            "reuse_len": SEQ_LEN // 2,
            "perm_size": SEQ_LEN // 2,
            "num_predict": SEQ_LEN // 6,
        },
    },
    "transformer_xl": {
        "model": {"type": "transformer_xl", **SIZES, "mem_len": 16},
        "objective": {"type": "causal_lm", "seq_len": SEQ_LEN},
    },
}
VOCAB_SIZES = {"arabic": 80, "german": 100, "continuous latin": 200}
TOKENIZERS = ("its own", "German with bytes", "bytes")


@pytest.fixture(scope="session")
def german_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that spells what it does not know, such as all of Chinese, in bytes."""
    folder = tmp_path_factory.mktemp("german")
    corpus = write_jsonl(folder / "corpus.jsonl", LANGUAGES["german"].documents(300))
    tokenizer = {"vocab_size": 370, "byte_fallback": True}
    return build_dataset(folder / "data", sources=[{"type": "jsonl", "path": str(corpus)}], tokenizer=tokenizer)


def build_language(folder: Path, name: str, tokenizer: dict[str, Any]) -> tuple[Path, list[str]]:
    """A dataset of 300 documents, and those."""
    documents = LANGUAGES[name].documents(300)
    corpus = write_jsonl(folder / "corpus.jsonl", documents)
    out = build_dataset(
        folder / "data",
        sources=[{"type": "jsonl", "path": str(corpus)}],
        tokenizer=tokenizer,
        sentences={"language": LANGUAGES[name].code, "line_ends": True},
        splits={"valid": 0.1},
        block_tokens=1024,
    )
    return out, documents


def check_that_nothing_is_lost(out: Path, documents: list[str]) -> None:
    """Of the text but spaces, and what SentencePiece takes for the same character."""
    splits = [TokenDataset.open(out / name) for name in ("train", "valid")]
    assert sum(split.num_bytes for split in splits) == sum(len(document.encode()) for document in documents)
    assert sum(split.num_sentences for split in splits) == sum(len(document.splitlines()) for document in documents)
    assert sum(split.num_unknown for split in splits) == 0
    decoded = []
    for split in splits:
        tokenizer, ends = split.open_tokenizer(), split.document_ends(0, split.num_tokens)
        texts = zip([0, *(ends + 1)], ends, strict=False)
        decoded += [tokenizer.decode(split.tokens(start, end)) for start, end in texts]
    assert sorted(map(_letters, decoded)) == sorted(map(_letters, documents))


def _letters(text: str) -> str:
    return "".join(normalize("NFKC", text).split())


def share_predicted(objective: Objective, manifest: TokenDataset) -> tuple[float, int]:
    """Of the tokens of 480 samples; and how many of these samples predict nothing."""
    rows = objective.training_samples(manifest, mem_len=0, num_streams=STREAMS, seed=1, shuffle_blocks=4)
    collate = objective.collator(manifest.open_tokenizer(), seed=1)
    tokens = predictions = without = 0
    for step in range(SAMPLES // STREAMS):
        batch = collate([rows.sample(step=step, stream=stream) for stream in range(STREAMS)])
        per_row = np.bincount(batch.samples_of(objective.terms[0]).numpy(), minlength=STREAMS)
        valid = batch.inputs.attention_mask
        tokens += STREAMS * SEQ_LEN if valid is None else int(valid.sum())
        predictions += int(per_row.sum())
        without += int((per_row == 0).sum())
    return predictions / tokens, without


def train_six_steps(
    folder: Path, out: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> tuple[Objective, list[dict[str, Any]]]:
    """The objective, and the metrics of a run that warns of nothing."""
    path = commands.write_config(
        folder / f"{model}.yaml",
        out,
        **MODELS[model],
        name=model,
        engine={"type": "plain", "precision": "fp32"},
        schedule={"type": "cosine", "warmup_steps": 2},
        wandb={"mode": "disabled"},
        max_steps=6,
    )
    assert main([str(path)]) == 0
    assert "warning" not in "".join(capsys.readouterr())
    return run_config.load(path).objective, commands.read_metrics(folder / "runs" / model)


def check_training(folder: Path, out: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Six steps, in which as much is predicted as should be."""
    objective, metrics = train_six_steps(folder, out, model, capsys)
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    assert len(losses) == 6 and np.isfinite(losses).all()
    share, without = share_predicted(objective, TokenDataset.open(out / "train"))
    assert without == 0
    if objective.type == "masked_lm":
        assert 0.145 <= share <= 0.155
        assert all(0.12 <= row["data/predicted_share"] <= 0.18 for row in metrics)
        assert all(row["data/samples_without_predictions"] == 0 for row in metrics)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_in_the_bytes_of_another_is_built_and_trained_on(
    language: str, german_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, documents = build_language(tmp_path, language, {"path": str(german_tokenizer / "tokenizer")})
    check_that_nothing_is_lost(out, documents)
    check_training(tmp_path, out, "albert", capsys)


@pytest.mark.full
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_is_built_and_trained_on_with_every_objective(
    language: str, tokenizer: str, german_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {
        "its own": {"vocab_size": VOCAB_SIZES.get(language, 300), "character_coverage": 1.0},
        "German with bytes": {"path": str(german_tokenizer / "tokenizer")},
        "bytes": {"model_type": "bytes"},
    }
    out, documents = build_language(tmp_path, language, settings[tokenizer])
    check_that_nothing_is_lost(out, documents)
    for model in MODELS:
        check_training(tmp_path, out, model, capsys)
