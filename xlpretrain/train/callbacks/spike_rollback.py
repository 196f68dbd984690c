"""Loss spike detection, and the request to roll back to a checkpoint before the spike.

PaLM (arXiv:2204.02311, section 5.1): after a spike, training returns to a checkpoint before it and skips the data
around it. The same data causes no spike with other weights, so a spike needs both: the data and the state of the
weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from xlpretrain.config.sections import SpikeConfig
from xlpretrain.errors import TrainingError
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext, CompletedStep, RollBack


class SpikeRollback(Callback):
    """Compares each step's loss, over all ranks, with the losses of the steps before it.

    rollbacks: number of rollbacks so far. recent_losses: losses of the last steps, at most `spike.window`.
    """

    num_numbers = 1

    def __init__(self, context: CallbackContext):
        self.rollbacks = 0
        self.recent_losses: list[float] = []
        self._config, self._max_steps, self._alert = context.config, context.max_steps, context.alert
        self._last: CompletedStep | None = None  # until its loss is agreed
        self._before_spike: list[float] | None = None

    def after_step(self, done: CompletedStep) -> None:
        """Keep the step, if its loss is needed."""
        if self._config.spike.threshold is not None and done.step < self._max_steps:
            self._last = done

    def numbers(self, step: int) -> Sequence[float]:
        """This rank's part of the last step's loss. A device meanwhile works on the step's backward pass."""
        last, weights = self._last, self._config.objective.weights
        if last is None:
            return [0.0]
        return [sum(weights[term] * float(s) / (last.counts[term] or 1) for term, s in last.host_sums.items())]

    def agreed(self, step: int, sums: Sequence[float]) -> RollBack | None:
        """Request a rollback if the last step's loss is a spike. Raises `TrainingError` after too many of them."""
        if self._last is None:
            return None
        self._last, self._before_spike = None, None
        spike, before = self._config.spike, self.recent_losses
        self.recent_losses = [*before, sums[0]][-spike.window :]
        if not is_spike(sums[0], before, spike):
            return None
        if self.rollbacks >= spike.max_rollbacks:
            raise TrainingError(
                f"the loss spikes at step {step}, and all {spike.max_rollbacks} of spike.max_rollbacks are used up:"
                " lower optimizer.lr, look at the data of those steps, leave out more of it (spike.skip_after), or"
                " raise spike.max_rollbacks or spike.threshold, and resume"
            )
        self._before_spike = before
        self._alert(
            "spike",
            f"the loss is {sums[0]:.4f}, the median of the {spike.window} steps before {statistics.median(before):.4f};"
            f" rollback {self.rollbacks + 1} of at most {spike.max_rollbacks}",
            step,
        )
        return RollBack(f"the loss spikes to {sums[0]:.4f}", spike.skip_before, spike.skip_after)

    def after_rollback(self, saved: Mapping[str, Any] | None) -> None:
        """Count the rollback. The next losses are compared with those before the step that the run returned to."""
        self.rollbacks += 1
        if saved is not None:
            self.recent_losses = list(saved["recent_losses"])
        elif self._before_spike is not None:
            self.recent_losses = self._before_spike

    def metrics(self, step: int, sums: object) -> Metrics:
        """Number of rollbacks since the run started."""
        return {"events/rollbacks": self.rollbacks}

    def state(self) -> dict[str, Any]:
        """The number of rollbacks and the recent losses."""
        return {"rollbacks": self.rollbacks, "recent_losses": self.recent_losses}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.rollbacks, self.recent_losses = state["rollbacks"], list(state["recent_losses"])


def is_spike(loss: float, recent: Sequence[float], config: SpikeConfig) -> bool:
    """True if `loss` stands out from the losses of the steps before it."""
    if config.threshold is None or len(recent) < config.window:
        return False
    return loss > statistics.median(recent) + config.threshold
