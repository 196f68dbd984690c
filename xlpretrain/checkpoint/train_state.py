"""State of a run besides weights, optimizer and memory. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_FORMER: dict[str, dict[str, Any]] = {
    "best_checkpoint": {"best_step": None, "best_value": None},
    "spike_rollback": {"rollbacks": 0, "recent_losses": []},
    "nonfinite": {"skipped_updates": 0, "nonfinite_in_a_row": 0},
    "damaged_samples": {"damaged_rows": 0},
}
"""Fields of callbacks that older checkpoints have at the top level, with the defaults of those that lack them."""


@dataclass
class TrainState:
    """Counters of a run, equal on every rank, stored in every checkpoint.

    step: completed steps, which is also the position in the data. tokens: tokens trained on.
    skipped_windows: [first, last) data steps skipped after a rollback.
    failed_saves: checkpoints that could not be written.
    unrecorded: this step's metrics so far, while a section, such as its evaluation, is pending; done_sections:
        callbacks whose section is done.
    callbacks: state of each callback that has one, by name, as of the last save.
    """

    step: int = 0
    tokens: int = 0
    wandb_id: str = ""
    skipped_windows: list[tuple[int, int]] = field(default_factory=list)
    failed_saves: int = 0
    unrecorded: dict[str, float | int] | None = None
    done_sections: list[str] = field(default_factory=list)
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> TrainState:
        """The state in a checkpoint's manifest, also in one that was written before callbacks had their own."""
        saved = dict(saved)
        if "callbacks" not in saved:
            saved["callbacks"] = {
                name: {key: saved.pop(key, default) for key, default in fields.items()}
                for name, fields in _FORMER.items()
            }
            if "valid/loss" in (saved.get("unrecorded") or {}):
                saved["done_sections"] = ["evaluation"]
        saved["skipped_windows"] = [(first, last) for first, last in saved.get("skipped_windows", [])]
        return cls(**saved)

    @property
    def recorded_step(self) -> int:
        """Last step whose metrics are in `metrics.jsonl`, if every step is logged."""
        return self.step if self.unrecorded is None else self.step - 1


def best_step(state: Mapping[str, Any]) -> int | None:
    """The step of the best evaluation in the state of a checkpoint's manifest; None if there was none yet."""
    own = state["callbacks"].get("best_checkpoint", {}) if "callbacks" in state else state
    step: int | None = own.get("best_step")
    return step
