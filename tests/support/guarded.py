"""Trackers as a run has them, and what they show, read back by their own programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import commands
import numpy as np
from wandb_file import read_run_history

from xlpretrain.run_dir.layout import RunDir
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


def all_trackers(folder: Path) -> list[dict[str, str]]:
    """The config of all trackers that need no network; MLflow's database is made in a folder."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{folder}/mlflow.db").create_experiment("xlpretrain")  # else a run prints that it is made
    return [
        {"type": "wandb", "mode": "offline"},
        {"type": "tensorboard"},
        {"type": "mlflow", "uri": f"sqlite:///{folder}/mlflow.db"},
    ]


def check_all_trackers(run: Path, folder: Path) -> None:
    """Raise AssertionError unless each of `all_trackers` shows the losses of a run, once where it can."""
    from mlflow import MlflowClient

    losses = {row["step"]: row["train/loss"] for row in commands.read_metrics(run)}
    assert {row["train/step"]: row["train/loss"] for row in read_run_history(run)} == losses
    assert read_event_files(run / "tensorboard") == [(step, np.float32(loss)) for step, loss in losses.items()]
    mlflow = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    place = mlflow.get_experiment_by_name("xlpretrain").experiment_id
    (found,) = mlflow.search_runs([place], f"tags.`xlpretrain.run` = '{RunDir(run).read_provenance()['id']}'")
    history = mlflow.get_metric_history(found.info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == losses
    assert found.info.status == "FINISHED"


def read_event_files(folder: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """Steps and values as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    known = tag in accumulator.Tags()["scalars"]
    return [(event.step, event.value) for event in accumulator.Scalars(tag)] if known else []
