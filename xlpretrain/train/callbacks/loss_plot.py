"""The loss curve in the run folder, redrawn after each evaluation."""

from __future__ import annotations

from collections.abc import Callable

from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback


class LossPlot(Callback):
    """Calls `plot` on every rank; the recorder writes only on rank 0."""

    def __init__(self, plot: Callable[[], None]):
        self._plot = plot

    def after_row(self, step: int, row: Metrics) -> None:
        """Draw if there is a new evaluation."""
        if "valid/loss" in row:
            self._plot()
