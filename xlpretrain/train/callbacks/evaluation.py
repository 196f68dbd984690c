"""Evaluation on the held-out split every `eval.every_steps` and at the end."""

from __future__ import annotations

from xlpretrain.evaluation.held_out import EvalTask, Pause, evaluate
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext


class Evaluation(Callback):
    """A section that scores the held-out split; all callbacks' `after_evaluation` is called afterwards."""

    def __init__(self, context: CallbackContext, task: EvalTask):
        self._context, self._task = context, task

    def is_due(self, step: int) -> bool:
        """True at multiples of `eval.every_steps`."""
        return self._context.is_due(step, self._context.config.eval.every_steps)

    def section(self, pause: Pause) -> Metrics:
        """Evaluate the current model."""
        return evaluate(self._context.model, self._task, pause=pause).metrics()
