"""A trained run, read back: its config, its weights, its tokenizer, and its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch

from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import find_best, load_weights_into
from xlpretrain.config import origin
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.config import LabelledDataConfig
from xlpretrain.data.mixture import Mixture
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.engine.config import DTYPES
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.classification import class_probabilities
from xlpretrain.evaluation.generation import sample_text
from xlpretrain.evaluation.held_out import EvalResult, evaluate
from xlpretrain.evaluation.likelihood import Likelihood, log_likelihoods
from xlpretrain.models.pretraining_model import Batch, Loss, PretrainingModel
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.classification import Classification
from xlpretrain.run_dir.layout import RunDir


@dataclass(frozen=True)
class LoadedRun:
    """A run's model in evaluation mode, in the precision it was trained in."""

    folder: RunDir
    config: RunConfig
    model: PretrainingModel
    step: int
    device: torch.device

    @classmethod
    def load(
        cls,
        folder: RunDir,
        *,
        device: torch.device,
        step: int | None = None,
        dtype: torch.dtype | None = None,
        moved: Sequence[str] = (),
    ) -> LoadedRun:
        """The newest whole checkpoint of a run (the best one, if it keeps that), or that of `step`.

        Args:
            dtype: of the weights (default: as the model was trained with).
            moved: where its data lies now, as `data.train=DIR`.

        Raises:
            CheckpointError: there is none.
        """
        config = origin.load_config(folder, moved)
        size = folder.read_provenance().get("vocab_size") or origin.open_tokenizer(folder, config).vocabulary.size
        model = config.build_model(size)
        if step is not None:
            source = folder.checkpoints / checkpoint_name(step)
        else:
            source = find_best(folder.checkpoints) if config.checkpoint.keep_best else folder.checkpoints
        found = load_weights_into(model, source)
        return cls(folder, config, model.to(device, dtype or DTYPES[config.engine.precision]).eval(), found, device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its texts. Raises `DataError` if it no longer exists, or never did."""
        return origin.open_tokenizer(self.folder, self.config)

    @cached_property
    def train(self) -> Mixture:
        """The data that it was trained on. Raises `DataError` if that is not there any more, or is other data now."""
        return origin.open_train(self.config, self.folder, self.tokenizer)

    @cached_property
    def valid(self) -> TokenDataset | None:
        """The data that it was evaluated on, if it was. Raises `DataError` as `train` does."""
        return origin.open_valid(self.config, self.folder, self.tokenizer)

    def predict(self, texts: Sequence[str | Sequence[str]]) -> list[dict[str, float]]:
        """Predict with a classifier: the probability of each label, for each text or pair of texts. Raises
        `ConfigError`."""
        pairs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        _, labels = self.is_classifier
        return [dict(zip(labels, row, strict=True)) for row in self.class_probabilities(pairs).tolist()]

    @property
    def is_classifier(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The columns of a classifier's texts in files, and its labels. Raises `ConfigError`."""
        data, objective = self.config.data, self.config.objective
        if not isinstance(data, LabelledDataConfig) or type(objective) is not Classification:
            raise ConfigError(f"{self.folder.path}: is not a classifier; run `xlpretrain finetune` on it first")
        return data.text, objective.labels

    def class_probabilities(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """The distribution over a classifier's labels for each text or pair of texts. Raises `ConfigError`."""
        columns, _ = self.is_classifier
        strange = next((text for text in texts if len(text) != len(columns)), None)
        if strange is not None:
            raise ConfigError(
                f"{self.folder.path}: an example has {len(columns)} texts ({', '.join(columns)}), got {len(strange)}"
            )
        return class_probabilities(self.model, cast(Classification, self.config.objective), self.tokenizer, texts)

    def evaluate(self, split: Path | str | None = None, *, config: EvalConfig) -> EvalResult:
        """Evaluate on the split in a folder or behind a URL (default: the run's held-out one). Every rank calls it."""
        valid = self.valid if split is None else self.config.data.open_split(split, self.tokenizer)
        if valid is None:
            raise DataError("the run has no held-out split (data.valid); name one with --data")
        return evaluate(
            self._forward,
            self.model.backbone.empty_memory,
            manifest=valid,
            tokenizer=self.tokenizer,
            objective=self.config.eval_objective(config),
            mem_len=self.config.eval_mem_len(config),
            config=config,
            device=self.device,
        )

    def log_likelihoods(
        self, texts: Sequence[str], *, mem_len: int | None = None, batch_size: int = 32
    ) -> list[Likelihood]:
        """The likelihood of each text: `.nats` (0 or less), `.num_tokens`, `.perplexity`, `.bits_per_byte`.

        The log-likelihood of a causal model, the pseudo-log-likelihood of a masked or permutation one.

        Args:
            mem_len: positions that a causal model remembers (default: as trained).
            batch_size: rows side by side.

        Raises:
            ConfigError: the objective has no likelihood of a text (a classifier's), or none is known.
        """
        return log_likelihoods(
            self.model,
            self.config.objective,
            self.tokenizer,
            texts,
            mem_len=self.config.model.mem_len if mem_len is None else mem_len,
            batch_size=batch_size,
        )

    def generate(
        self,
        prompt: str,
        *,
        num_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        mem_len: int | None = None,
        stop: bool = True,
    ) -> str:
        """Continue a text, at a constant cost per token.

        Args:
            prompt: how a document begins; may be empty.
            num_tokens: how many to write at most.
            temperature: below 1 likelier words come more often; 0: always the likeliest.
            top_k: draw among so many likeliest tokens.
            top_p: draw among the likeliest tokens that together have this probability.
            seed: of the draws.
            mem_len: positions remembered (default: as trained).
            stop: at the end of the document.

        Raises:
            ConfigError: the model was not trained to write text, or an argument is out of its range.
        """
        if type(self.config.objective) is not CausalLM:
            raise ConfigError(
                f"{self.folder.path}: cannot write text: its objective was {self.config.objective.type}, and only"
                " causal_lm predicts the next token"
            )
        if temperature < 0 or not 0 < top_p <= 1:
            raise ConfigError(
                f"temperature must be 0 or more, top_p above 0 and at most 1, got {temperature} and {top_p}"
            )
        eod, start = self.tokenizer.vocabulary.eod, self.tokenizer.encode(prompt)
        written = sample_text(
            self.model,
            [eod, *start],
            num_tokens=num_tokens,
            mem_len=self.config.model.mem_len if mem_len is None else mem_len,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=eod if stop else None,
        )
        # Decoded together, so that a space between them is kept.
        return self.tokenizer.decode([*start, *written]).removeprefix(self.tokenizer.decode(start))

    @torch.no_grad()
    def _forward(self, batch: Batch, mems: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        loss, mems = self.model(batch, mems)
        return loss, mems
