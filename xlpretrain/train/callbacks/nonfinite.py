"""Counts steps with a non-finite loss or gradient, and ends the run after too many in a row."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from xlpretrain.errors import TrainingError
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext, CompletedStep


class NonFinite(Callback):
    """Counts skipped updates: in total, and consecutive ones up to now.

    Between two logged steps a device's steps are counted one step late: by then the device is at work on the next one,
    and does not run dry while the host waits for the norm.
    """

    def __init__(self, context: CallbackContext):
        self.skipped_updates = 0
        self.nonfinite_in_a_row = 0
        self._context = context
        self._uncounted: deque[CompletedStep] = deque()

    def after_step(self, done: CompletedStep) -> None:
        """Count a step whose update was skipped."""
        self._uncounted.append(done)
        late = self._context.device.type != "cpu" and not self._context.is_logged(done.step)
        self._count(all_but=1 if late else 0)

    def _count(self, *, all_but: int = 0) -> None:
        while len(self._uncounted) > all_but:
            done = self._uncounted.popleft()
            if math.isfinite(done.grad_norm):
                self.nonfinite_in_a_row = 0
            else:
                self.skipped_updates += 1
                self.nonfinite_in_a_row += 1
                self._context.print(f"step {done.step}: loss or gradient is not finite; no update was made")

    def after_row(self, step: int, row: Metrics) -> None:
        """Raise `TrainingError` after `stop.max_nonfinite_steps` such steps in a row."""
        limit = self._context.config.stop.max_nonfinite_steps
        if self.nonfinite_in_a_row >= limit:
            step -= len(self._uncounted)
            raise TrainingError(
                f"{limit} steps in a row, up to step {step}, had a loss or gradient that is not finite;"
                " lower optimizer.lr or optimizer.grad_clip, lengthen schedule.warmup_steps, or use"
                " engine.precision=fp32, and resume from the last checkpoint in"
                f" {self._context.config.folder.checkpoints}"
            )

    def metrics(self, step: int, sums: object) -> Metrics:
        """Number of updates skipped since the run started."""
        return {"events/skipped_updates": self.skipped_updates}

    def after_rollback(self, saved: Mapping[str, Any] | None) -> None:
        """Keep the total: skipped updates in undone steps still count."""
        self._count()
        self.nonfinite_in_a_row = 0 if saved is None else saved["nonfinite_in_a_row"]

    def state(self) -> dict[str, Any]:
        """The total and the consecutive count."""
        self._count()
        return {"skipped_updates": self.skipped_updates, "nonfinite_in_a_row": self.nonfinite_in_a_row}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore both counts."""
        self.skipped_updates, self.nonfinite_in_a_row = state["skipped_updates"], state["nonfinite_in_a_row"]
