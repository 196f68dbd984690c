"""The best evaluation of a run: keeps its checkpoint, and ends the run early without improvement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext, Request


class BestCheckpoint(Callback):
    """Tracks the best evaluation so far; on a tie, the first one."""

    def __init__(self, context: CallbackContext):
        self.best_step: int | None = None
        self.best_value: float | None = None
        self._config = context.config

    def after_evaluation(self, step: int, metrics: Metrics) -> None:
        """Compare with the best evaluation so far."""
        criterion, best = self._config.eval.best, self.best_value
        name = f"{self._config.objective.terms[0]}_accuracy" if criterion == "accuracy" else criterion
        value = metrics.get(f"valid/{name}")  # a metric may be undefined
        if value is not None and (best is None or (value < best if criterion == "loss" else value > best)):
            self.best_step, self.best_value = step, value

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
        """The step and the value of the best evaluation."""
        return {"best_step": self.best_step, "best_value": self.best_value}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the best evaluation."""
        self.best_step, self.best_value = state["best_step"], state["best_value"]
