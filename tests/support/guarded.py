"""Trackers as a run has them, and what they show, read back by their own programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xlpretrain.tracking.base import TrackedRun, TrackerConfig
from xlpretrain.tracking.guard import GuardedTracker, Row

LOGGED_AT_S = 1_700_000_000.0
PATIENCE_S = 120.0


def start(config: TrackerConfig, folder: Path, *, next_step: int = 1, history: Sequence[Row] = ()) -> GuardedTracker:
    """A tracker of the run `abc123`."""
    run = TrackedRun("abc123", "mine", folder, {"seed": 1, "model": {"type": "bert"}}, next_step)
    return GuardedTracker(config, run, history=history)


def row(step: int, *, attempt: int = 0) -> dict[str, float | int]:
    """The metrics of a step, of which only the time depends on the attempt."""
    return {"step": step, "train/loss": step / 3, "time/logged_at_s": LOGGED_AT_S + 1000 * attempt + step}


def finish(tracker: GuardedTracker, state: str = "stopped") -> None:
    """An orderly end."""
    tracker.close(state)
    tracker.wait(PATIENCE_S)


def read_event_files(folder: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """Steps and values as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    known = tag in accumulator.Tags()["scalars"]
    return [(event.step, event.value) for event in accumulator.Scalars(tag)] if known else []
