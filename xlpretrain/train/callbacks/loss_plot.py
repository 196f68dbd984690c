"""The loss curve of the run folder, drawn anew after each evaluation."""

from __future__ import annotations

from collections.abc import Callable

from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback


class LossPlot(Callback):
    """Draws by calling `plot` on every rank; the recorder knows which of them writes."""

    def __init__(self, plot: Callable[[], None]):
        self._plot = plot

    def after_row(self, step: int, row: Metrics) -> None:
        """Draw where there is a new evaluation."""
        if "valid/loss" in row:
            self._plot()
