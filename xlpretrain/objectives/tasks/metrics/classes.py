"""Metrics of a classifier (with scikit-learn)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xlpretrain.extras import optional


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of predictions against labels.

    matthews: Matthews' correlation coefficient; None if labels or predictions are all the same.
    roc_auc: for two labels, from the probability of the second; for more, the one-vs-rest average. None if a label does
        not occur. confusion: rows are labels, columns are predictions, in the order of `labels`.
    """

    num_examples: int
    accuracy: float
    macro_f1: float
    matthews: float | None
    roc_auc: float | None
    labels: tuple[str, ...]
    confusion: list[list[int]]

    @classmethod
    def compute(cls, truth: Sequence[str], probabilities: np.ndarray, labels: Sequence[str]) -> ClassMetrics:
        """Compute metrics. probabilities: one distribution per example [N, labels]."""
        with optional("sklearn", "scoring a classifier"):
            from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef, roc_auc_score

        predicted = [labels[i] for i in probabilities.argmax(axis=1)]
        roc_auc = None
        if set(truth) == set(labels):
            numbers = [labels.index(label) for label in truth]
            scores = probabilities[:, 1] if len(labels) == 2 else probabilities
            roc_auc = float(roc_auc_score(numbers, scores, multi_class="ovr", labels=range(len(labels))))
        constant = len(set(truth)) == 1 or len(set(predicted)) == 1
        return cls(
            num_examples=len(truth),
            accuracy=float(accuracy_score(truth, predicted)),
            macro_f1=float(f1_score(truth, predicted, labels=list(labels), average="macro", zero_division=0)),
            matthews=None if constant else float(matthews_corrcoef(truth, predicted)),
            roc_auc=roc_auc,
            labels=tuple(labels),
            confusion=confusion_matrix(truth, predicted, labels=list(labels)).tolist(),
        )
