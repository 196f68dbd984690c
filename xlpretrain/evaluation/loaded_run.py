"""A trained run, loaded for use: config, weights, tokenizer and data."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import find_best, load_weights_into
from xlpretrain.config import origin
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages
from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.examples.config import ExampleDataConfig
from xlpretrain.data.mixture import Mixture
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, check_text
from xlpretrain.engine.config import DTYPES
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.generation import SamplingOptions, sample_text
from xlpretrain.evaluation.held_out import EvalResult, EvalTask, EvaluatedModel, evaluate
from xlpretrain.evaluation.likelihood import Likelihood, log_likelihoods
from xlpretrain.evaluation.task_outputs import task_outputs
from xlpretrain.models.pretraining_model import Batch, Loss, PretrainingModel
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.run_dir.layout import RunDir


@dataclass(frozen=True)
class LoadedRun:
    """The model of a run in evaluation mode.

    config: of the run, or of a part of its mixed objective alone. whole: of the run.
    """

    folder: RunDir
    config: RunConfig
    model: PretrainingModel
    step: int
    device: torch.device
    whole: RunConfig

    @classmethod
    def load(
        cls,
        folder: RunDir,
        *,
        device: torch.device,
        step: int | None = None,
        dtype: torch.dtype | None = None,
        moved: Sequence[str] = (),
        weights: str = "trained",
        part: str | None = None,
        use: str = "",
    ) -> LoadedRun:
        """Load the newest intact checkpoint of a run (or the best one, if the run keeps it), or that of `step`.

        Args:
            dtype: type of the weights (default: the training precision).
            moved: new locations of its data, such as `data.train=DIR`.
            weights: of the checkpoint: those that were trained, or their moving average.
            part, use: load a part of a mixed objective alone: the one of this name, or the first one that declares a
                use (default: all parts); see `Objective.part`.

        Raises:
            CheckpointError: there is no such checkpoint, or it has no moving average.
            ConfigError: there is no such part.
        """
        config = origin.load_config(folder, moved)
        wanted = part is not None or use
        if wanted:
            config.of_part(part, use)  # raises before anything is read
        size = folder.read_provenance().get("vocab_size") or origin.open_tokenizer(folder, config).vocabulary.size
        model = config.build_model(size)
        if step is not None:
            source = folder.checkpoints / checkpoint_name(step)
        else:
            source = find_best(folder.checkpoints) if config.checkpoint.keep_best else folder.checkpoints
        found = load_weights_into(model, source, weights)
        model = model.to(device, dtype or DTYPES[config.engine.precision]).eval()
        run = cls(folder, config, model, found, device, whole=config)
        return run.of_part(part, use) if wanted else run

    def of_part(self, name: str | None, use: str) -> LoadedRun:
        """The same model with the head of one part of a mixed objective, else itself. Raises `ConfigError`."""
        config = self.config.of_part(name, use)
        if config is self.config:
            return self
        with torch.device("meta"):
            head = config.objective.head(self.model.backbone)
        for name, _ in list(head.named_children()):
            setattr(head, name, getattr(self.model.head, name))
        return replace(self, config=config, model=PretrainingModel(self.model.backbone, head).eval())

    @property
    def tokens(self) -> int:
        """Tokens that the run has trained on until `step`."""
        return RunStages.of(self.whole).tokens(self.step)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises `DataError` if it does not exist."""
        return origin.open_tokenizer(self.folder, self.config)

    @cached_property
    def train(self) -> Mixture:
        """The training data. Raises `DataError` if they are missing or have changed."""
        return origin.open_train(self.config, self.folder, self.tokenizer)

    @cached_property
    def valid(self) -> TokenDataset | None:
        """The validation data, or None. Raises `DataError` like `train`."""
        return origin.open_valid(self.config, self.folder, self.tokenizer)

    def predict(self, examples: Sequence[Any]) -> list[Any]:
        """Predict examples of the run's task, such as texts, or pairs of texts, of a classifier.

        Returns one prediction per example: for a classifier, the probability of each label.

        Warns if examples are truncated. Raises `ConfigError` if the run is not fine-tuned for a task or `examples` is
        not a list of what the task expects, and `DataError` for invalid Unicode.
        """
        _refuse_single(examples, "predict")
        task, files = self.task
        data = files.from_objects(examples, self.tokenizer)
        if num_cut := task.num_cut(example.parts for example in data.examples):
            warnings.warn(task.describe_cut(num_cut, len(data.examples)), stacklevel=2)
        return task.answers(self.predictions(data))

    @property
    def task(self) -> tuple[Task, ExampleDataConfig]:
        """The task of a fine-tuned run, and its data. Raises `ConfigError` for other runs."""
        data, objective = self.config.data, self.config.objective
        if not isinstance(data, ExampleDataConfig) or not isinstance(objective, Task):
            raise ConfigError(f"{self.folder.path}: not fine-tuned for a task; run `xlpretrain finetune` on it first")
        report = json.loads(self.folder.figures.read_text(encoding="utf-8")) if self.folder.figures.is_file() else {}
        return objective.tuned(report), data

    def predictions(self, data: ExampleDataset) -> list[Any]:
        """The task's prediction for each example of a dataset."""
        task, _ = self.task
        examples, mem_len = task.numbered(data), self.config.model.mem_len
        return task.predictions(data, task_outputs(self.model, task, self.tokenizer, examples, mem_len=mem_len))

    def evaluate(self, split: Path | str | None = None, *, config: EvalConfig, keep_losses: bool = False) -> EvalResult:
        """Evaluate on a split, a folder or URL (default: the run's held-out split). Every rank must call it.

        keep_losses: keep the loss of each prediction.
        """
        model = EvaluatedModel.of_backbone(self._forward, self.model.backbone, self.device)
        task = EvalTask.of_run(self.config, self.held_out(split), self.tokenizer, config)
        return evaluate(model, task, keep_losses=keep_losses)

    def held_out(self, split: Path | str | None = None) -> TokenDataset:
        """A split, a folder or URL, by default the run's own held-out one. Raises `DataError` if there is none."""
        valid = self.valid if split is None else self.config.data.open_split(split, self.tokenizer)
        if valid is None:
            raise DataError("the run has no held-out split (data.valid); pass one with --data")
        return valid

    def log_likelihoods(
        self, texts: Sequence[str], *, mem_len: int | None = None, batch_size: int = 32, within_word: bool = False
    ) -> list[Likelihood]:
        """The likelihood of each text: `.nats` (at most 0), `.num_tokens`, `.perplexity`, `.bits_per_byte`.

        This is the log-likelihood for a causal model, the pseudo-log-likelihood for a masked or permutation model, and
        the sum of the declared queries for other objectives.

        Args:
            mem_len: memory length of a causal model (default: as trained).
            batch_size: samples per batch.
            within_word: when a token is scored, also hide the later tokens of its word (Kauf and Ivanova 2023,
                arXiv:2305.10588, PLL-word-l2r). Not for a causal model.

        With bf16 weights (see `precision` of `xlpretrain.load`) the error is up to about 0.1 nats per sentence.

        Raises:
            ConfigError: the objective declares no likelihood of a text, or an argument is out of range.
            DataError: a text is not valid Unicode.
        """
        _refuse_single(texts, "log_likelihoods")
        run = self.of_part(None, "likelihood_queries")
        for number, text in enumerate(texts, 1):
            check_text(text, f"text {number}")
        _check_range("batch_size", batch_size, least=1)
        if mem_len is not None:
            _check_range("mem_len", mem_len, least=0)
        return log_likelihoods(
            run.model,
            run.config.objective,
            self.tokenizer,
            texts,
            mem_len=run.config.model.mem_len if mem_len is None else mem_len,
            batch_size=batch_size,
            within_word=within_word,
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

        A model without a memory reads the last tokens, as many as a sample has, again for each new one.

        Args:
            prompt: beginning of the document; may be empty.
            num_tokens: maximum number of new tokens.
            temperature: below 1 favors more likely tokens; 0 always takes the most likely one.
            top_k: sample from the K most likely tokens (default: all).
            top_p: sample from the most likely tokens with this total probability.
            seed: random seed for sampling.
            mem_len: memory length (default: as trained).
            stop: stop at the end of the document.

        Raises:
            ConfigError: the model cannot generate text, or an argument is out of range.
            DataError: the prompt is not valid Unicode.
        """
        run = self.of_part(None, "generates")
        objective, vocabulary = run.config.objective, self.tokenizer.vocabulary
        if not objective.generates:
            raise ConfigError(
                f"{self.folder.path}: cannot generate text: objective {objective.type} does not predict the next token"
                f" (its class {type(objective).__name__} does not declare `generates`)"
            )
        layout = objective.declared(objective.token_layout, "token_layout")
        options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        check_text(prompt, "the prompt")
        _check_range("num_tokens", num_tokens, least=0)
        if mem_len is not None:
            _check_range("mem_len", mem_len, least=0)
        start = self.tokenizer.encode(prompt)
        written = sample_text(
            run.model,
            [*layout.prefix(vocabulary), *start],
            num_tokens=num_tokens,
            mem_len=run.config.model.mem_len if mem_len is None else mem_len,
            window=run.config.window,
            options=options,
            stop=layout.end(vocabulary) if stop else None,
        )
        # Decode both together to keep the space between them.
        return self.tokenizer.decode([*start, *written]).removeprefix(self.tokenizer.decode(start))

    @torch.no_grad()
    def _forward(self, batch: Batch, mems: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        loss, mems = self.model(batch, mems)
        return loss, mems


def _refuse_single(texts: object, method: str) -> None:
    if isinstance(texts, str):
        raise ConfigError(f"{method}: expected a list of texts, got a single text; write {method}([text])")


def _check_range(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}")
