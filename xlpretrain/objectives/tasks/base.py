"""The interface of a task: an objective on labelled examples, with predictions and metrics.

A task reads the examples of its type of data (`data/examples/`), numbers their targets, and lays out their texts as in
pretraining. Its head gives one output per sample, from which the task makes the predictions of all examples and their
metrics, in training as in `xlpretrain predict`.

Shapes: B samples, T tokens, C classes, D d_model.
"""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from xlpretrain.data.examples.base import ExampleDataset, ExampleEvalSamples, ExampleSamples
from xlpretrain.data.samples import Example, Sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.token_layout import LAYOUTS, TokenLayout
from xlpretrain.file_system.atomic_files import atomic_writer
from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.pretraining_model import Batch, Head
from xlpretrain.objectives.base import EvaluationStreams, Objective, TrainingStreams
from xlpretrain.schema import Problem

Metrics = Mapping[str, float | None]
"""Metrics by name; None where one is undefined, such as a correlation of constants."""
TableRows = tuple[list[str], Iterator[Sequence[Any]]]
"""The header and the rows of a table."""


HubTask = Literal["SequenceClassification", "TokenClassification", "MultipleChoice", "QuestionAnswering"]
"""The suffix of the `AutoModelFor...` class of `transformers` that loads an exported model."""


class TaskHead(Head):
    """The head of a task."""

    @abstractmethod
    def outputs(self, hidden: Hidden, batch: Batch) -> Float[Tensor, "B ..."]:
        """The fp32 outputs of each sample."""


class Task(Objective):
    """An objective on labelled examples."""

    seq_len: int = Field(128, ge=8)
    """Maximum length, including special tokens; longer texts are truncated, in a pair the longer one first."""
    layout: str
    """Special tokens around texts. cls_first: [CLS] A [SEP] B [SEP], as in ALBERT and BERT; cls_last: A SEP B SEP CLS,
    as in XLNet; document: EOD A EOD B EOD, for causal models; or written out for a text and a pair, with segments, as
    in cls A sep | cls A sep B:1 sep:1."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the vectors that the outputs are computed from."""

    requires: ClassVar[frozenset[str]] = frozenset()
    predicts_tokens: ClassVar[bool] = False
    data_type: ClassVar[str] = "labelled"
    """The type of its data (`data.type`)."""
    metric_names: ClassVar[tuple[str, ...]]
    """The metrics, all better if larger. The first one chooses the best checkpoint of a fine-tune."""
    hub_task: ClassVar[HubTask | None] = None
    """The head of an exported model; None if it cannot be exported."""
    problem_type: ClassVar[str] = "single_label_classification"
    """The kind of a sequence classification in `transformers`."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Optional packages that the metrics need, by their keys in `extras.PACKAGES`."""

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """The names of the head's outputs, such as the labels."""

    def problems(self) -> Iterator[Problem]:
        """A problem if the layout cannot be parsed."""
        try:
            TokenLayout.parse(self.layout)
        except ValueError as error:
            yield "layout", f"must be one of {', '.join(LAYOUTS)}, or written out as SINGLE | PAIR: {error}"

    @property
    def token_layout(self) -> TokenLayout:
        """The layout in the config."""
        return TokenLayout.parse(self.layout)

    @property
    def max_tokens(self) -> int:
        """Maximum length of an example, including special tokens."""
        return self.seq_len

    @property
    def max_tokens_key(self) -> str:
        """The config key of `max_tokens`, for messages."""
        return "objective.seq_len"

    @property
    def span_len(self) -> int:
        """The length of a sample."""
        return self.max_tokens

    @property
    def new_tokens(self) -> int:
        """The length of a sample."""
        return self.max_tokens

    def run_problems(self, *, mem_len: int, global_batch_size: int) -> Iterator[Problem]:
        """Conflicts with the rest of the config: samples are not consecutive."""
        yield from self.memory_problems(mem_len)

    def data_problems(self, manifest: TokenDataset) -> Iterator[Problem]:
        """No conflicts: opening the files checks them."""
        yield from ()

    def check_data(self, train: Sequence[TokenDataset], valid: TokenDataset | None) -> None:
        """Check the targets of all examples. Raises `DataError`."""
        for data in (*train, *([] if valid is None else [valid])):
            self.check(examples_of(data))

    def data_notes(self, data: TokenDataset) -> Iterator[str]:
        """A note on truncated examples."""
        examples = examples_of(data)
        if num_cut := self.num_cut(example.parts for example in examples.examples):
            yield f"{examples.path}: {self.describe_cut(num_cut, len(examples.examples))}"

    def num_cut(self, examples: Iterable[Sequence[Sequence[int]]]) -> int:
        """Number of examples that are truncated. examples: token ids of one or two texts each."""
        layout = self.token_layout
        return sum(
            sum(map(len, parts)) > self.max_tokens - layout.num_symbols(2 if len(parts) == 2 and parts[1] else 1)
            for parts in examples
        )

    def describe_cut(self, num_cut: int, total: int) -> str:
        """A message about truncated examples."""
        return (
            f"{num_cut:,} of {total:,} examples are longer than a sample of {self.max_tokens} tokens"
            f" ({self.max_tokens_key}) and are truncated"
        )

    def num_segments(self, data: TokenDataset) -> int:
        """Number of segments, depending on the number of texts per example."""
        return self.token_layout.num_segments(min(examples_of(data).num_texts, 2))

    @classmethod
    @abstractmethod
    def keys_for(cls, train: ExampleDataset, valid: ExampleDataset | None) -> dict[str, Any]:
        """The task's own config keys for these data, such as the labels. Raises `DataError` for unusable ones."""

    @classmethod
    def criterion(cls, keys: Mapping[str, Any]) -> str:
        """The metric that chooses the best checkpoint of a fine-tune. keys: as from `keys_for`."""
        return cls.metric_names[0]

    @classmethod
    def longest_sample(cls, train: ExampleDataset, layout: TokenLayout) -> int:
        """Number of tokens that hold every example, special tokens included."""
        return train.max_length + layout.num_symbols(2)

    @abstractmethod
    def check(self, data: ExampleDataset) -> None:
        """Check that every example has a target that the task can learn. Raises `DataError`."""

    def tuned(self, report: Mapping[str, Any]) -> Task:
        """A copy with what was tuned on the validation file. report: that of the run. Default: unchanged."""
        return self

    @abstractmethod
    def numbered(self, data: ExampleDataset) -> Sequence[Example]:
        """The examples as the model reads them, with numbers as targets; None for an unknown target."""

    def training_examples(self, data: ExampleDataset) -> Sequence[Example]:
        """The numbered examples of the training file. Default: with equal weights."""
        return self.numbered(data)

    def full_example(self, tokens: Sequence[int]) -> Example:
        """A numbered example that fills a sample, made of `seq_len` tokens: what the largest batch is planned with."""
        return Example((tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]), 0)

    @abstractmethod
    def head(self, backbone: Backbone) -> TaskHead:
        """The head (on the device), for a new backbone."""

    @abstractmethod
    def predictions(self, data: ExampleDataset, outputs: Sequence[np.ndarray]) -> list[Any]:
        """The prediction for each example. outputs: those of the head, for each of `numbered`."""

    @abstractmethod
    def metrics(self, data: ExampleDataset, predictions: Sequence[Any]) -> Metrics:
        """The metrics over the examples with a target, by `metric_names`."""

    def report(self, data: ExampleDataset, predictions: Sequence[Any]) -> dict[str, Any]:
        """The results for metrics.json: the number of examples with a target, the metrics and, if any, tables."""
        num_examples = sum(example.target is not None for example in self.numbered(data))
        return {"num_examples": num_examples, **self.metrics(data, predictions)}

    def describe(self, report: Mapping[str, Any]) -> str:
        """A report in one line."""
        metrics = (
            f"{name} {'undefined' if report[name] is None else format(report[name], '.4f')}"
            for name in self.metric_names
        )
        return f"{', '.join(metrics)}, of {report['num_examples']:,} examples"

    def describe_unknown(self, data: ExampleDataset) -> str | None:
        """A message on examples whose target the task does not know, if any."""
        return None

    @abstractmethod
    def answers(self, predictions: Sequence[Any]) -> list[Any]:
        """The predictions as plain Python values, for `LoadedRun.predict`."""

    @abstractmethod
    def lines(self, predictions: Sequence[Any]) -> Iterator[str]:
        """The predictions as printed by `xlpretrain predict`, one line each."""

    @abstractmethod
    def rows(self, data: ExampleDataset, predictions: Sequence[Any]) -> TableRows:
        """The header and the rows of a table of predictions."""

    def write(self, path: Path, data: ExampleDataset, predictions: Sequence[Any]) -> None:
        """Write the predictions in the task's format. Default: a .csv of `rows`."""
        header, rows = self.rows(data, predictions)
        with atomic_writer(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    def training_samples(self, manifest: TokenDataset, **streams: Unpack[TrainingStreams]) -> ExampleSamples:
        """Every example once per epoch."""
        data = examples_of(manifest)
        self.check(data)
        return ExampleSamples(
            data, self.training_examples(data), num_streams=streams["num_streams"], seed=streams["seed"]
        )

    def evaluation_samples(self, manifest: TokenDataset, **streams: Unpack[EvaluationStreams]) -> TaskEvalSamples:
        """Every example once."""
        data = examples_of(manifest)
        self.check(data)
        return TaskEvalSamples(self.numbered(data), num_streams=streams["num_streams"], task=self, data=data)


class TaskEvalSamples(ExampleEvalSamples):
    """The evaluation samples of a task, with its metrics."""

    def __init__(self, examples: Sequence[Example], *, num_streams: int, task: Task, data: ExampleDataset):
        super().__init__(examples, num_streams=num_streams)
        self._task, self._data = task, data

    def by_example(self, outputs: np.ndarray, *, step: int, streams: Sequence[int]) -> dict[int, np.ndarray]:
        """The outputs [B, ...] of one step's samples by the index of their examples; none past the end of a slice."""
        numbers = (self.number(step=step, stream=stream) for stream in streams)
        return {number: row for number, row in zip(numbers, outputs, strict=True) if number is not None}

    def metrics(self, outputs: Mapping[int, np.ndarray]) -> Metrics:
        """The task's metrics. outputs: those of the head for all examples, by index."""
        found = self._task.predictions(self._data, [outputs[number] for number in range(len(self.examples))])
        return self._task.metrics(self._data, found)


def example_of(sample: Sample) -> Example:
    """The example of a task's sample."""
    assert sample.example is not None, "samples of `ExampleSamples`"
    return sample.example


def examples_of(data: TokenDataset) -> ExampleDataset:
    """The dataset as one of examples, which `RunConfig.problems` requires for a task."""
    assert isinstance(data, ExampleDataset)
    return data
