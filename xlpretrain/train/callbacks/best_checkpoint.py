"""The best evaluation of a run: keeps its checkpoint, and ends the run early without improvement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext, Request


class BestCheckpoint(Callback):
    """Tracks the best evaluation so far.

    On a tie of the metric, the one with the lower loss is better, then the first one: a metric such as F1 may be 0, and
    a correlation undefined (which is worse than any value), for as long as a model has learned little.
    """

    def __init__(self, context: CallbackContext):
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.best_loss = -math.inf
        self._config = context.config

    def after_evaluation(self, step: int, metrics: Metrics) -> None:
        """Compare with the best evaluation so far."""
        criterion = self._config.eval.best
        name = f"{self._config.objective.terms[0]}_accuracy" if criterion == "accuracy" else criterion
        value, loss = metrics.get(f"valid/{name}"), _or_infinity(metrics.get("valid/loss"))
        if self.best_step is None or self._rank(value, loss) > self._rank(self.best_value, self.best_loss):
            self.best_step, self.best_value, self.best_loss = step, value, loss

    def _rank(self, value: float | None, loss: float) -> tuple[float, float]:
        """The rank of an evaluation, larger for a better one."""
        if self._config.eval.best == "loss":
            return -_or_infinity(value), 0.0
        return (-math.inf if value is None or math.isnan(value) else value), -loss

    def agreed(self, step: int, sums: object) -> Request | None:
        """Request the end after `stop.patience` evaluations without improvement, or a save of a new best step."""
        config, best = self._config, self.best_step
        patience = config.stop.patience
        if best is None:
            return None
        if patience is not None and step - best >= patience * config.eval.every_steps:
            return "finish"
        return "save" if best == step and config.checkpoint.keep_best else None

    def state(self) -> dict[str, Any]:
        """The step, the value and the loss of the best evaluation."""
        loss = self.best_loss if math.isfinite(self.best_loss) else None
        return {"best_step": self.best_step, "best_value": self.best_value, "best_loss": loss}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the best evaluation."""
        self.best_step, self.best_value = state["best_step"], state["best_value"]
        loss = state.get("best_loss")  # older checkpoints lack it: then a tie is no improvement
        self.best_loss = -math.inf if loss is None else loss


def _or_infinity(loss: float | None) -> float:
    """The loss; infinity if it is missing or not a number."""
    return math.inf if loss is None or math.isnan(loss) else loss
