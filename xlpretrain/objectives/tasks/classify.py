"""Classification of texts or pairs of texts into one label each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.examples.labelled import check_labels, distinct_labels, labelled
from xlpretrain.data.samples import Example
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.errors import DataError
from xlpretrain.models.backbone import Backbone, Hidden
from xlpretrain.models.pretraining_model import Batch, Loss, TokenScores
from xlpretrain.objectives.tasks.base import Metrics, TableRows
from xlpretrain.objectives.tasks.class_weights import ClassWeights, weight_problems, weighted_sum, weights_of_classes
from xlpretrain.objectives.tasks.lay_out import TextCollator
from xlpretrain.objectives.tasks.metrics.classes import ClassMetrics
from xlpretrain.objectives.tasks.summary import SummaryHead, SummaryTask, probabilities, unknown_labels_note
from xlpretrain.schema import Problem

UNLABELLED = -1


class Classification(SummaryTask):
    """-log p(label | the text, or the pair of texts)."""

    type: Literal["classify"] = "classify"
    """Kind of objective."""
    labels: tuple[str, ...] = Field(min_length=2)
    """The labels."""
    class_weights: ClassWeights = None
    """Weights of the labels in the training loss: balanced, inversely proportional to their number of examples; or a
    mapping such as {pos: 3}, with 1 for labels without one (default: all 1)."""

    terms: ClassVar[tuple[str, ...]] = ("label",)
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "matthews", "roc_auc")
    needs: ClassVar[tuple[str, ...]] = ("sklearn",)

    def problems(self) -> Iterator[Problem]:
        """Conflicts between keys."""
        if len(set(self.labels)) < len(self.labels):
            yield "labels", f"must be distinct, got {', '.join(self.labels)}"
        yield from weight_problems(self.class_weights, self.labels)
        yield from super().problems()

    @property
    def output_names(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    @property
    def answer_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the classes: the labels."""
        return {"label": self.labels}

    @classmethod
    def keys_for(cls, train: ExampleDataset, valid: ExampleDataset | None) -> dict[str, Any]:
        """The labels. Raises `DataError` if there are fewer than two, or others in the held-out file."""
        check_labels(labelled(train), None if valid is None else labelled(valid))
        return {"labels": distinct_labels(labelled(train))}

    def check(self, data: ExampleDataset) -> None:
        """Check that every label is one of the classifier's. Raises `DataError`."""
        found = labelled(data).known_labels
        numbers = label_numbers(found, self.labels)
        strange = sorted({label for label, n in zip(found, numbers, strict=True) if n == UNLABELLED})
        if strange:
            expected = ", ".join(self.labels)
            raise DataError(f"{data.path}: unknown labels {', '.join(strange)}; expected one of {expected}")

    def numbered(self, data: ExampleDataset) -> list[Example]:
        """The examples, with the index of each label."""
        labels = labelled(data).labels
        numbers = [UNLABELLED] * len(data.examples) if labels is None else label_numbers(labels, self.labels)
        return [
            replace(example, target=None if number == UNLABELLED else number)
            for example, number in zip(data.examples, numbers, strict=True)
        ]

    def training_examples(self, data: ExampleDataset) -> Sequence[Example]:
        """The numbered examples, with the weights of their labels."""
        examples = self.numbered(data)
        weights = weights_of_classes(self.class_weights, self.labels, (e.target for e in examples))
        return examples if weights is None else [replace(e, weights=weights[e.target]) for e in examples]

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> TextCollator:
        """The collator, which makes no random choices."""
        return TextCollator(
            "label", torch.int64, self.max_tokens, self.token_layout, tokenizer.vocabulary, self.part_len
        )

    def head(self, backbone: Backbone) -> ClassificationHead:
        """The head."""
        return ClassificationHead(backbone, len(self.labels), **self.head_options)

    def predictions(self, data: ExampleDataset, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The probability of each label, for each example, in fp64."""
        return probabilities(outputs)

    def metrics(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> Metrics:
        """Metrics over the examples with a known label."""
        found = self.class_metrics(data, predictions)
        return {} if found is None else {name: getattr(found, name) for name in self.metric_names}

    def class_metrics(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> ClassMetrics | None:
        """Metrics and confusion matrix over the examples with a known label; None without any."""
        truth = [example.target for example in self.numbered(data)]
        known = [number for number, label in enumerate(truth) if label is not None]
        if not known:
            return None
        chosen = np.stack([predictions[number] for number in known])
        return ClassMetrics.compute([self.labels[truth[number]] for number in known], chosen, self.labels)

    def report(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> dict[str, Any]:
        """The metrics, the labels, and the confusion matrix: rows are labels, columns are predictions."""
        found = self.class_metrics(data, predictions)
        return {"num_examples": 0} if found is None else asdict(found)

    def describe(self, report: Mapping[str, Any]) -> str:
        """A report in one line."""
        auc = report["roc_auc"]
        shown = "undefined (a label does not occur)" if auc is None else f"{auc:.4f}"
        figures = f"accuracy {report['accuracy']:.4f}, macro F1 {report['macro_f1']:.4f}, ROC AUC {shown}"
        return f"{figures}, of {report['num_examples']:,} examples"

    def describe_unknown(self, data: ExampleDataset) -> str | None:
        """A message on labels that the classifier does not know."""
        others = Counter(
            label.strip()
            for label, example in zip(labelled(data).labels or (), self.numbered(data), strict=False)
            if example.target is None
        )
        return unknown_labels_note(others, others.total(), total=len(data.examples))

    def answers(self, predictions: Sequence[np.ndarray]) -> list[dict[str, float]]:
        """The probability of each label."""
        return [dict(zip(self.labels, row.tolist(), strict=True)) for row in predictions]

    def lines(self, predictions: Sequence[np.ndarray]) -> Iterator[str]:
        """The label and its probability."""
        return (f"{self.labels[row.argmax()]}\t{row.max():.4f}" for row in predictions)

    def rows(self, data: ExampleDataset, predictions: Sequence[np.ndarray]) -> TableRows:
        """The texts, the label if known, the prediction, and all probabilities in full precision."""
        header = ["predicted", *(f"p({label})" for label in self.labels)]
        return labelled(data).rows_with(header, ([self.labels[row.argmax()], *row.tolist()] for row in predictions))


class ClassificationHead(SummaryHead):
    """Maps one vector per sample to the labels."""

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of samples with a label, and the loss of each."""
        at, labels = batch.targets["label_positions"], batch.targets["label"]
        logits = self.outputs(hidden, batch)
        nll = F.cross_entropy(logits[at], labels, reduction="none")
        correct = None if self.training else logits[at].argmax(dim=-1) == labels
        scores = {"label": TokenScores(samples=at, nll=nll.detach(), correct=correct)}
        return Loss({"label": weighted_sum(nll, batch, "label")}, scores, None if self.training else logits)


def label_numbers(values: Sequence[str], labels: Sequence[str]) -> list[int]:
    """The index of each value in `labels`, or `UNLABELLED`. White space around values is ignored.

    (Unless a label in `labels` itself has it, as in older classifiers.)
    """
    number_of = {label.strip(): number for number, label in enumerate(labels)}
    number_of |= {label: number for number, label in enumerate(labels)}
    return [number_of.get(value, number_of.get(value.strip(), UNLABELLED)) for value in values]
