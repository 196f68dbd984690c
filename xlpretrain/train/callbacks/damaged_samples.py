"""Counts and reports samples skipped because their block is damaged (`data.on_damage: skip`)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from xlpretrain import distributed
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext


class DamagedSamples(Callback):
    """Counts skipped samples over all ranks, and reports each damaged block once per attempt.

    damage: by step, one message for each skipped sample of this rank (see `Loader`).
    """

    num_numbers = 1

    def __init__(self, context: CallbackContext, damage: MutableMapping[int, list[str]]):
        self.damaged_rows = 0
        self._context, self._damage = context, damage
        self._agreed = 0
        self._reported: set[str] = set()

    def numbers(self, step: int) -> Sequence[float]:
        """The number of this rank's samples that the next step skips."""
        return [len(self._damage.get(step, ()))]

    def agreed(self, step: int, sums: Sequence[float]) -> None:
        """Keep the number over all ranks until the step is done."""
        self._agreed = int(sums[0])

    def before_step(self, step: int) -> None:
        """Add to the count. If any samples are skipped, all ranks exchange their messages."""
        if not self._agreed:
            return
        self.damaged_rows += self._agreed
        for messages in distributed.gather_objects(self._damage.pop(step, [])):
            for message in messages:
                if message not in self._reported:
                    self._reported.add(message)
                    self._context.print(f"skipping samples of a damaged block: {message}")

    def metrics(self, step: int, sums: object) -> Metrics:
        """Number of samples skipped since the run started."""
        return {"events/damaged_rows": self.damaged_rows}

    def state(self) -> dict[str, Any]:
        """Number of samples skipped so far."""
        return {"damaged_rows": self.damaged_rows}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the count."""
        self.damaged_rows = state["damaged_rows"]
