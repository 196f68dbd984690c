"""Metrics of a classifier that gives any number of labels to a text (with scikit-learn)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlpretrain.extras import optional


@dataclass(frozen=True)
class LabelMetrics:
    """Metrics of sets of labels.

    mean_average_precision: of the labels that occur; None if none does. micro_f1: over all decisions. macro_f1: mean of
    the labels' F1. exact_match: share of the examples with exactly the right labels (subset accuracy). per_label: the
    number of examples with the label, precision, recall, F1 and average precision, by label. A score whose divisor is 0
    is 0.
    """

    num_examples: int
    mean_average_precision: float | None
    micro_f1: float
    macro_f1: float
    exact_match: float
    per_label: dict[str, dict[str, Any]]

    @classmethod
    def compute(
        cls, truth: np.ndarray, probabilities: np.ndarray, labels: Sequence[str], *, threshold: float
    ) -> LabelMetrics:
        """Compute metrics. truth, probabilities: [N, labels]. threshold: least probability of a predicted label."""
        with optional("sklearn", "scoring a classifier"):
            from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

        wanted, found = truth > 0, probabilities >= threshold
        average = [
            float(average_precision_score(wanted[:, i], probabilities[:, i])) if wanted[:, i].any() else None
            for i in range(len(labels))
        ]
        known = [value for value in average if value is not None]
        precision, recall, f1, support = precision_recall_fscore_support(wanted, found, zero_division=0)
        per_label = {
            label: {
                "support": int(support[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "average_precision": average[i],
            }
            for i, label in enumerate(labels)
        }
        return cls(
            num_examples=len(truth),
            mean_average_precision=sum(known) / len(known) if known else None,
            micro_f1=float(f1_score(wanted, found, average="micro", zero_division=0)),
            macro_f1=float(f1_score(wanted, found, average="macro", zero_division=0)),
            exact_match=float((wanted == found).all(axis=1).mean()),
            per_label=per_label,
        )
