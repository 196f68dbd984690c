"""Classification of texts or pairs of texts into any number of labels each, such as topics.

Each label is a decision of its own: a sigmoid, and the binary cross entropy, averaged over labels (in transformers the
problem type "multi_label_classification").

Shapes: B samples, C labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.examples.multilabelled import multilabelled
from xlpretrain.data.samples import Example
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.errors import DataError
from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.pretraining_model import Batch, Loss, TokenScores
from xlpretrain.objectives.tasks.base import Metrics, TableRows, examples_of
from xlpretrain.objectives.tasks.lay_out import TextCollator
from xlpretrain.objectives.tasks.metrics.labels import LabelMetrics
from xlpretrain.objectives.tasks.summary import SummaryHead, SummaryTask, unknown_labels_note
from xlpretrain.schema import Problem


class MultilabelClassification(SummaryTask):
    """-log p(label or not | the text, or the pair of texts), averaged over labels."""

    type: Literal["multilabel"] = "multilabel"
    """Kind of objective."""
    labels: tuple[str, ...] = Field(min_length=2)
    """The labels."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Least probability of a predicted label."""

    terms: ClassVar[tuple[str, ...]] = ("labels",)
    data_type: ClassVar[str] = "multilabelled"
    metric_names: ClassVar[tuple[str, ...]] = ("mean_average_precision", "micro_f1", "macro_f1", "exact_match")
    problem_type: ClassVar[str] = "multi_label_classification"
    needs: ClassVar[tuple[str, ...]] = ("sklearn",)

    def problems(self) -> Iterator[Problem]:
        """Conflicts between keys."""
        if len(set(self.labels)) < len(self.labels):
            yield "labels", f"must be distinct, got {', '.join(self.labels)}"
        yield from super().problems()

    @property
    def output_names(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    @classmethod
    def keys_for(cls, train: ExampleDataset, valid: ExampleDataset | None) -> dict[str, Any]:
        """The labels. Raises `DataError` if there are fewer than two, or others in the held-out file."""
        data = multilabelled(train)
        occurring = {label for example in train.examples for label in example.target or ()}
        labels = list(data.names) or sorted(occurring)
        if never := [label for label in labels if label not in occurring]:
            raise DataError(f"{train.path}: no text has the label {', '.join(never)}; remove the column, or add texts")
        if len(labels) < 2:
            got = f"all texts with a label have {labels[0]!r}" if labels else "no text has a label"
            raise DataError(f"{train.path}: {got}; at least two labels are needed (a single one: --task classify)")
        if valid is not None:
            _check(valid, labels, source=str(train.path))
        return {"labels": labels}

    def check(self, data: ExampleDataset) -> None:
        """Check that every label is one of the classifier's. Raises `DataError`."""
        _check(data, self.labels, source="objective.labels")

    def data_notes(self, data: TokenDataset) -> Iterator[str]:
        """Notes on truncated examples, and on a file in which no text has several labels."""
        yield from super().data_notes(data)
        examples = multilabelled(examples_of(data))
        if all(len(example.target or ()) <= 1 for example in examples.examples):
            expected = "" if examples.names else f"; they are separated by {examples.separator!r} (data.separator)"
            yield f"{examples.path}: no text has several labels{expected}"

    def numbered(self, data: ExampleDataset) -> list[Example]:
        """The examples, with 1 for each label that a text has, and 0 for the others."""
        known = set(self.labels)
        return [
            replace(example, target=None if target is None or set(target) - known else self._indicators(target))
            for example in data.examples
            for target in (example.target,)
        ]

    def full_example(self, tokens: Sequence[int]) -> Example:
        """An example of full length without labels."""
        return replace(super().full_example(tokens), target=self._indicators(()))

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> TextCollator:
        """The collator, which makes no random choices."""
        return TextCollator(
            "labels", torch.float32, self.max_tokens, self.token_layout, tokenizer.vocabulary, self.part_len
        )

    def head(self, backbone: Backbone) -> MultilabelHead:
        """The head."""
        return MultilabelHead(backbone, len(self.labels), **self.head_options)

    def predictions(self, data: ExampleDataset, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The probability of each label, for each example, in fp64."""
        return list(torch.from_numpy(np.stack(outputs)).double().sigmoid().numpy())

    def metrics(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> Metrics:
        """Metrics over the examples whose labels are known."""
        found = self._label_metrics(data, predictions)
        return {} if found is None else {name: getattr(found, name) for name in self.metric_names}

    def report(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """The metrics, and those of each label."""
        found = self._label_metrics(data, predictions)
        return {"num_examples": 0} if found is None else asdict(found)

    def describe_unknown(self, data: ExampleDataset) -> str | None:
        """A message on labels that the classifier does not know."""
        strange = Counter(label for e in data.examples for label in e.target or () if label not in self.labels)
        num_examples = sum(bool(set(e.target or ()) - set(self.labels)) for e in data.examples)
        return unknown_labels_note(strange, num_examples, total=len(data.examples))

    def answers(self, predictions: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """The probability of each label."""
        return [dict(zip(self.labels, row.tolist(), strict=True)) for row in predictions]

    def lines(self, predictions: Sequence[np.ndarray]) -> Iterator[str]:
        """The predicted labels with their probabilities; `[]` for none."""
        for row in predictions:
            chosen = np.flatnonzero(row >= self.threshold)
            yield ", ".join(f"{self.labels[number]} {row[number]:.4f}" for number in chosen) or "[]"

    def rows(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> TableRows:
        """The texts, the labels if known, the predicted labels, and all probabilities in full precision."""
        files = multilabelled(data)
        header = ["predicted", *(f"p({label})" for label in self.labels)]
        return files.rows_with(header, ([files.joined(self._chosen(row)), *row.tolist()] for row in predictions))

    def _chosen(self, row: np.ndarray) -> list[str]:
        """The predicted labels of one example."""
        return [self.labels[number] for number in np.flatnonzero(row >= self.threshold)]

    def _indicators(self, labels: Sequence[str]) -> tuple[float, ...]:
        """1 for each of the classifier's labels that is among `labels`, else 0."""
        return tuple(float(label in labels) for label in self.labels)

    def _label_metrics(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> LabelMetrics | None:
        """Metrics over the examples whose labels are known; None without any."""
        truth = [example.target for example in self.numbered(data)]
        known = [number for number, target in enumerate(truth) if target is not None]
        if not known:
            return None
        wanted, found = (np.stack([values[number] for number in known]) for values in (truth, predictions))
        return LabelMetrics.compute(wanted, found, self.labels, threshold=self.threshold)


class MultilabelHead(SummaryHead):
    """Maps one vector per sample to a logit for each label."""

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of samples with known labels, and the loss of each: the mean over labels."""
        at = batch.targets["labels_positions"]
        outputs = self.outputs(hidden, batch)
        logits = outputs[at]
        labels = batch.targets["labels"].view_as(logits)
        nll = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
        correct = None if self.training else ((logits > 0) == (labels > 0)).all(dim=1)
        scores = {"labels": TokenScores(samples=at, nll=nll.detach(), correct=correct)}
        return Loss({"labels": nll.sum()}, scores, None if self.training else outputs)


def _check(data: ExampleDataset, labels: Sequence[str], *, source: str) -> None:
    strange = Counter(label for e in data.examples for label in e.target or () if label not in labels)
    if strange:
        found = ", ".join(f"{label!r} ({count:,} rows)" for label, count in sorted(strange.items()))
        raise DataError(f"{data.path}: labels that are not in {source}: {found}")
