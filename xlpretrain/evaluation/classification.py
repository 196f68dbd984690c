"""Predictions of a fine-tuned run, and metrics (with scikit-learn)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from xlpretrain.data.labelled import UNLABELLED, make_sample
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.file_system.atomic_files import atomic_writer
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives.base import Objective

_ROWS = 32


@dataclass(frozen=True)
class ClassificationMetrics:
    """Metrics of predictions against labels.

    roc_auc: for two labels, from the probability of the second; for more, the one-vs-rest average. None if a label does
        not occur. confusion: rows are labels, columns are predictions, in the order of `labels`.
    """

    num_examples: int
    accuracy: float
    macro_f1: float
    roc_auc: float | None
    labels: tuple[str, ...]
    confusion: list[list[int]]

    @classmethod
    def compute(cls, truth: Sequence[str], probabilities: np.ndarray, labels: Sequence[str]) -> ClassificationMetrics:
        """Compute metrics. probabilities: one distribution per example [N, labels]."""
        from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

        predicted = [labels[i] for i in probabilities.argmax(axis=1)]
        roc_auc = None
        if set(truth) == set(labels):
            numbers = [labels.index(label) for label in truth]
            scores = probabilities[:, 1] if len(labels) == 2 else probabilities
            roc_auc = float(roc_auc_score(numbers, scores, multi_class="ovr", labels=range(len(labels))))
        return cls(
            num_examples=len(truth),
            accuracy=float(accuracy_score(truth, predicted)),
            macro_f1=float(f1_score(truth, predicted, labels=list(labels), average="macro", zero_division=0)),
            roc_auc=roc_auc,
            labels=tuple(labels),
            confusion=confusion_matrix(truth, predicted, labels=list(labels)).tolist(),
        )

    def describe(self) -> str:
        """The metrics in one line."""
        auc = "undefined (a label does not occur)" if self.roc_auc is None else f"{self.roc_auc:.4f}"
        figures = f"accuracy {self.accuracy:.4f}, macro F1 {self.macro_f1:.4f}, ROC AUC {auc}"
        return f"{figures}, of {self.num_examples:,} examples"


@dataclass(frozen=True)
class ClassPredictions:
    """Predictions for N examples. probabilities: [N, labels], fp64. num_cut: number of truncated examples."""

    probabilities: np.ndarray
    num_cut: int


@torch.no_grad()
def predict_classes(
    model: PretrainingModel, objective: Objective, tokenizer: Tokenizer, texts: Sequence[Sequence[str]]
) -> ClassPredictions:
    """A distribution over `objective.class_labels` for each text, or pair of texts."""
    device = next(model.parameters()).device
    encoded = [tokenizer.encode_batch(list(parts)) for parts in texts]
    samples = [make_sample(parts, label=UNLABELLED) for parts in encoded]
    collate = objective.collator(tokenizer, seed=0)
    found = np.zeros((len(samples), len(objective.class_labels)))
    # Batches of similar length need little padding.
    order = np.argsort([len(sample.tokens) for sample in samples], kind="stable")
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        batch = collate([samples[i] for i in chosen]).to(device)
        hidden, _ = model.backbone(batch.inputs, model.backbone.empty_memory(len(chosen), 0))
        found[chosen] = model.head.class_logits(hidden, batch).double().softmax(-1).cpu().numpy()
    return ClassPredictions(found, objective.num_cut(encoded))


def write_predictions(
    path: Path,
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    probabilities: np.ndarray,
    labels: Sequence[str],
    truth: Sequence[str] | None,
) -> None:
    """Write a .csv with the texts, the label if known, the prediction, and all probabilities in full precision."""
    header = [*columns, *(["label"] if truth is not None else []), "predicted", *(f"p({label})" for label in labels)]
    with atomic_writer(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i, row in enumerate(probabilities):
            known = [truth[i]] if truth is not None else []
            writer.writerow([*texts[i], *known, labels[row.argmax()], *row.tolist()])
