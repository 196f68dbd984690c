"""Evaluation on the held-out split every `eval.every_steps` and at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from xlpretrain.evaluation.held_out import EvalTask, Pause, evaluate
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext


class Evaluation(Callback):
    """A section that scores the held-out split; all callbacks' `after_evaluation` is called afterwards."""

    def __init__(
        self,
        context: CallbackContext,
        task: EvalTask,
        *,
        averaged: Callable[[], AbstractContextManager[None]] | None = None,
    ):
        """averaged: `Engine.averaged`, to evaluate the moving average of the weights, too; None if there is none."""
        self._context, self._task, self._averaged = context, task, averaged

    def is_due(self, step: int) -> bool:
        """True at multiples of `eval.every_steps`."""
        return self._context.is_due(step, self._context.config.eval.every_steps)

    def section(self, pause: Pause) -> Metrics:
        """Evaluate the current model, and its moving average, if it has one: `valid/loss_average` and so on."""
        metrics = evaluate(self._context.model, self._task, pause=pause).metrics()
        if self._averaged is not None:
            with self._averaged():
                found = evaluate(self._context.model, self._task, pause=pause).metrics()
            metrics |= {f"{name}_average": value for name, value in found.items()}
        return metrics
