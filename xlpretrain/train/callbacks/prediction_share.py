"""The share of the tokens that is predicted at the steps that are logged, and a warning where it is not as intended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from xlpretrain import distributed
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.objectives.base import Objective
from xlpretrain.tracking.metrics_file import Metrics

SAMPLES, FEWEST_SAMPLES = 480, 32
"""Samples after which the share is looked at; and at the end of a run, if there were as many."""


def _zeros() -> np.ndarray:
    return np.zeros(4, np.int64)


@dataclass
class PredictionCounter:
    """Counts tokens, predictions, samples, and samples without predictions.

    step: of this rank, in the last step that was counted. total: of all ranks, in all steps that were.
    """

    objective: Objective
    step: np.ndarray = field(default_factory=_zeros)
    total: np.ndarray = field(default_factory=_zeros)
    warned: bool = False

    def count(self, batches: Sequence[Batch]) -> None:
        """Take the micro-batches of a step, while they are on the CPU."""
        self.step = sum(map(self._count, batches), _zeros())

    def metrics(self, *, is_last: bool, warn: Callable[[str], None]) -> Metrics:
        """Metrics of the last counted step, over all ranks; each of them calls it. Warns once."""
        if self.objective.predicted_share is None:
            return {}
        step = np.array(distributed.all_reduce_sum(self.step.tolist())).astype(np.int64)
        self.total += step
        enough = self.total[2] >= (FEWEST_SAMPLES if is_last else SAMPLES)
        if enough and not self.warned and (problem := self._problem(*self.objective.predicted_share)):
            self.warned = True
            warn(problem)
        return {
            "data/predicted_share": float(step[1] / max(step[0], 1)),
            "data/samples_without_predictions": int(step[3]),
        }

    def _count(self, batch: Batch) -> np.ndarray:
        if batch.inputs.attention_mask is None:
            return _zeros()
        lengths = batch.inputs.attention_mask.sum(dim=1).numpy()
        predictions = np.bincount(batch.samples_of(self.objective.terms[0]).numpy(), minlength=len(lengths))
        samples = lengths > 1  # a sample that is left out has a symbol at most
        return np.array(
            [lengths[samples].sum(), predictions.sum(), samples.sum(), (samples & (predictions == 0)).sum()]
        )

    def _problem(self, least: float, most: float) -> str | None:
        tokens, predictions, samples, empty = self.total.tolist()
        share = predictions / max(tokens, 1)
        if least <= share <= most and not empty:
            return None
        return (
            f"warning: {share:.1%} of the tokens of {samples:,} samples are predicted, where {least:.1%} to {most:.1%}"
            f" should be, and {empty:,} samples predict nothing; `xlpretrain data show RUN --sample STEP` prints them"
        )
