"""A trained run, read back: its config, its weights, its tokenizer, and its data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch

from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import find_best, load_weights_into
from xlpretrain.config import origin
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.config import LabelledDataConfig
from xlpretrain.data.mixture import Mixture
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, lone_surrogate
from xlpretrain.engine.config import DTYPES
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.classification import ClassPredictions, predict_classes
from xlpretrain.evaluation.generation import SamplingOptions, sample_text
from xlpretrain.evaluation.held_out import EvalResult, evaluate
from xlpretrain.evaluation.likelihood import Likelihood, log_likelihoods
from xlpretrain.models.pretraining_model import Batch, Loss, PretrainingModel
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.classification import Classification
from xlpretrain.run_dir.layout import RunDir


@dataclass(frozen=True)
class LoadedRun:
    """A run's model in evaluation mode, in the precision that it was trained in unless `load` was told another."""

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
        """Predict with a classifier: the probability of each label, for each text or pair of texts.

        Warns of examples that are too long for a sample and so lose their end. Raises `ConfigError`: the run is no
        classifier, or `texts` is no list of what it classifies. Raises `DataError` for a text that is not Unicode.
        """
        _refuse_single(texts, "predict")
        examples = [(text,) if isinstance(text, str) else _as_example(text) for text in texts]
        _, labels = self.is_classifier
        found = self.predict_classes(examples)
        if found.num_cut:
            said = cast(Classification, self.config.objective).describe_cut(found.num_cut, len(examples))
            warnings.warn(said, stacklevel=2)
        return [dict(zip(labels, row, strict=True)) for row in found.probabilities.tolist()]

    @property
    def is_classifier(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The columns of a classifier's texts in files, and its labels. Raises `ConfigError`."""
        data, objective = self.config.data, self.config.objective
        if not isinstance(data, LabelledDataConfig) or type(objective) is not Classification:
            raise ConfigError(f"{self.folder.path}: is not a classifier; run `xlpretrain finetune` on it first")
        return data.text, objective.labels

    def predict_classes(self, examples: Sequence[Sequence[str]]) -> ClassPredictions:
        """The distribution over a classifier's labels for each example, of one text or two.

        Raises `ConfigError` and `DataError` as `predict` does.
        """
        columns, _ = self.is_classifier
        for number, texts in enumerate(examples, 1):
            if len(texts) != len(columns):
                raise ConfigError(
                    f"{self.folder.path}: an example has {len(columns)} texts ({', '.join(columns)}), got {len(texts)}"
                    f" in example {number}"
                )
            for text in texts:
                _check_text(text, f"example {number}")
        return predict_classes(self.model, cast(Classification, self.config.objective), self.tokenizer, examples)

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

        A model in bf16 (see `precision` of `xlpretrain.load`) is off by up to 0.1 nats or so over a sentence.

        Raises:
            ConfigError: the objective has no likelihood of a text (a classifier's), or none is known; or an argument
                is out of its range.
            DataError: a text is not Unicode.
        """
        _refuse_single(texts, "log_likelihoods")
        for number, text in enumerate(texts, 1):
            _check_text(text, f"text {number}")
        _check_range("batch_size", batch_size, least=1)
        if mem_len is not None:
            _check_range("mem_len", mem_len, least=0)
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
            top_k: draw among so many likeliest tokens (default: among all).
            top_p: draw among the likeliest tokens that together have this probability.
            seed: of the draws.
            mem_len: positions remembered (default: as trained).
            stop: at the end of the document.

        Raises:
            ConfigError: the model was not trained to write text, or an argument is out of its range.
            DataError: the prompt is not Unicode text.
        """
        if type(self.config.objective) is not CausalLM:
            raise ConfigError(
                f"{self.folder.path}: cannot write text: its objective was {self.config.objective.type}, and only"
                " causal_lm predicts the next token"
            )
        options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        _check_text(prompt, "the prompt")
        _check_range("num_tokens", num_tokens, least=0)
        if mem_len is not None:
            _check_range("mem_len", mem_len, least=0)
        eod, start = self.tokenizer.vocabulary.eod, self.tokenizer.encode(prompt)
        written = sample_text(
            self.model,
            [eod, *start],
            num_tokens=num_tokens,
            mem_len=self.config.model.mem_len if mem_len is None else mem_len,
            options=options,
            stop=eod if stop else None,
        )
        # Decoded together, so that a space between them is kept.
        return self.tokenizer.decode([*start, *written]).removeprefix(self.tokenizer.decode(start))

    @torch.no_grad()
    def _forward(self, batch: Batch, mems: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        loss, mems = self.model(batch, mems)
        return loss, mems


def _refuse_single(texts: object, method: str) -> None:
    if isinstance(texts, str):
        raise ConfigError(f"{method}: expected a list of texts, got one text; write {method}([text])")


def _as_example(texts: object) -> tuple[str, ...]:
    if not isinstance(texts, Iterable):
        raise ConfigError(f"predict: expected texts or pairs of texts, got a {type(texts).__name__} among them")
    return tuple(texts)


def _check_text(text: object, where: str) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"{where}: expected text, got a {type(text).__name__}")
    if (place := lone_surrogate(text)) is not None:
        raise DataError(f"{where}: not Unicode text: a lone surrogate at character {place}")


def _check_range(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an integer of {least} or more, got {value!r}")
