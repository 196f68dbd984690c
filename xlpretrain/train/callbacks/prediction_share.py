"""The share of tokens that are predicted, at logged steps, with a warning if it is outside the expected range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xlpretrain.models.pretraining_model import Batch, Loss
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext, MicroBatch

SAMPLES, FEWEST_SAMPLES = 480, 32
"""Number of samples after which the share is checked; and the fewest with which it is checked at the end of a run."""


class PredictionShare(Callback):
    """Counts tokens, predictions, samples, and samples without predictions, at logged steps.

    expected: lowest and highest share expected of the objective.
    """

    num_row_numbers = 4

    def __init__(self, context: CallbackContext, expected: tuple[float, float], *, term: str, part: int = 0):
        """term: the loss term of the predictions. part: the part of a mixed objective that it belongs to."""
        self._context, self._expected, self._term, self._part = context, expected, term, part
        self._counting = False
        self._step = np.zeros(4, np.int64)  # this rank, this step
        self._total = np.zeros(4, np.int64)  # all ranks, all logged steps
        self._warned = False

    def before_step(self, step: int) -> None:
        """Reset the counts; count this step if it is logged."""
        self._counting = self._context.is_logged(step + 1)
        self._step = np.zeros(4, np.int64)

    def after_forward(self, micro_batch: MicroBatch, loss: Loss) -> None:
        """Count a micro-batch, on the CPU."""
        if self._counting:
            self._step += self._count(micro_batch.batch)

    def row_numbers(self, step: int) -> Sequence[float]:
        """The counts of this rank."""
        return [float(number) for number in self._step]

    def metrics(self, step: int, sums: Sequence[float]) -> Metrics:
        """The metrics of the step over all ranks. Warns once if the share is outside the expected range."""
        counts = np.array(sums).astype(np.int64)
        self._total += counts
        enough = self._total[2] >= (FEWEST_SAMPLES if step == self._context.max_steps else SAMPLES)
        if enough and not self._warned and (problem := self._problem(*self._expected)):
            self._warned = True
            self._context.print(problem)
        return {
            "data/predicted_share": float(counts[1] / max(counts[0], 1)),
            "data/samples_without_predictions": int(counts[3]),
        }

    def _count(self, batch: Batch) -> np.ndarray:
        if batch.inputs.attention_mask is None or batch.part != self._part:
            return np.zeros(4, np.int64)
        lengths = batch.inputs.attention_mask.sum(dim=1).numpy()
        predictions = np.bincount(batch.samples_of(self._term).numpy(), minlength=len(lengths))
        samples = lengths > 1  # a skipped sample has at most one symbol
        return np.array(
            [lengths[samples].sum(), predictions.sum(), samples.sum(), (samples & (predictions == 0)).sum()]
        )

    def _problem(self, least: float, most: float) -> str | None:
        tokens, predictions, samples, empty = self._total.tolist()
        share = predictions / max(tokens, 1)
        if least <= share <= most and not empty:
            return None
        return (
            f"warning: {share:.1%} of the tokens of {samples:,} samples are predicted, where {least:.1%} to {most:.1%}"
            f" should be, and {empty:,} samples predict nothing; `xlpretrain data show RUN --sample STEP` prints them"
        )
