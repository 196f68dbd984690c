"""The recorder of rank 0 and of the other ranks: metrics, status, and files that cannot be written for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import PrivateAttr

from xlpretrain import schema
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.config.run_config import RunConfig
from xlpretrain.run_dir.layout import Branch, RunDir, Status
from xlpretrain.run_dir.lease import Lease, acquire
from xlpretrain.tracking.base import TrackedRun, Tracker, TrackerConfig
from xlpretrain.tracking.metrics_file import read_metrics
from xlpretrain.train import recorder as recorder_module
from xlpretrain.train.recorder import Recorder


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    content = {
        "name": "run",
        "runs_dir": str(tmp_path),
        "max_steps": 100,
        "global_batch_size": 2,
        "micro_batch_size": 2,
        "data": {"train": "data"},
        "model": {"type": "transformer_xl", "num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8},
        "objective": {"type": "causal_lm", "seq_len": 8},
        "wandb": {"mode": "disabled"},
        "stop": {"unwritable_s": 1e-9},
    }
    return schema.validate(RunConfig, content, "test")


@pytest.fixture
def lease(config: RunConfig) -> Iterator[Lease]:
    config.folder.path.mkdir()
    held = acquire(config.folder.lease, launch_id="", take_over=False)
    yield held
    held.close()


def make_recorder(config: RunConfig, lease: Lease, *, rank: int = 0) -> Recorder:
    status = Status("running", max_steps=100, launch_id="", world_size=1)
    return Recorder(config, config.folder, rank=rank, run_id="abc123", status=status, lease=lease)


def recorded_steps(folder: RunDir) -> list[int]:
    return [row["step"] for row in read_metrics(folder.metrics)]


def test_a_resume_forgets_later_steps_and_counts_them_as_lost(config: RunConfig, lease: Lease):
    with make_recorder(config, lease) as recorder:
        for step in (10, 20, 30):
            recorder.goodput.add_time("step_s")
            recorder.record(step, {"valid/loss": 1.0})
    previous = config.folder.read_status()
    assert previous is not None and (previous.state, previous.step) == ("running", 30)
    with make_recorder(config, lease) as recorder:
        recorder.resume_at(TrainState(step=20), previous)
        assert recorded_steps(config.folder) == [10, 20]
        assert recorder.goodput.metrics()["goodput/steps_redone"] == 10
        recorder.record(21, {"valid/loss": 1.0})
    assert recorded_steps(config.folder) == [10, 20, 21]


def test_files_that_cannot_be_written_are_a_reason_to_stop_until_they_can(config: RunConfig, lease: Lease, capsys):
    folder = config.folder
    with make_recorder(config, lease) as recorder:
        assert recorder.reason_to_stop() is None
        folder.status.mkdir()  # a folder in its place: no file can be written there, not even by root
        recorder.record(10, {"valid/loss": 1.0})
        assert recorder.reason_to_stop() == "disk"
        folder.status.rmdir()
        assert recorder.reason_to_stop() is None
    said = capsys.readouterr().out
    assert said.count("cannot be written") == 1 and said.count("can be written again") == 1
    assert recorded_steps(folder) == [10]


def test_other_ranks_write_nothing(config: RunConfig, lease: Lease, capsys):
    before = sorted(config.folder.path.rglob("*"))
    with make_recorder(config, lease, rank=1) as recorder:
        recorder.resume_at(TrainState(step=20), None)
        recorder.record(21, {"valid/loss": 1.0})
        recorder.print("a message")
        recorder.plot()
        assert recorder.reason_to_stop() is None
    assert sorted(config.folder.path.rglob("*")) == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("reason", "restart_s"), [("finished", 5.0), ("user", 5.0), ("time", 3605.0), ("signal", 3605.0), ("", 3605.0)]
)
def test_rest_after_a_finished_or_stopped_run_is_nobodys_and_setting_up_is_counted(
    config: RunConfig, lease: Lease, monkeypatch: pytest.MonkeyPatch, reason: str, restart_s: float
):
    ended = Status("finished", reason, step=10, updated_at=1000.0, goodput={"goodput/step_s": 50.0})  # type: ignore[arg-type]
    now = 1000.0 + 3600  # an hour later another attempt is started
    monkeypatch.setattr(recorder_module.time, "time", lambda: now)
    with make_recorder(config, lease) as recorder:
        now += 5  # to build the model and read the checkpoint
        recorder.resume_at(TrainState(step=10), ended)
        assert recorder.goodput.restart_s == restart_s
        assert (recorder.goodput.step_s, recorder.goodput.lost_s, recorder.goodput.restarts) == (50.0, 0.0, 1)


class Diary(Tracker):
    """Keeps nothing."""

    def log(self, metrics: Mapping[str, float | int]) -> None:
        pass


class DiaryConfig(TrackerConfig):
    """A tracker that notes the config of its run."""

    type: Literal["diary"] = "diary"
    _configs: list[Mapping[str, Any]] = PrivateAttr(default_factory=list)

    def build(self, run: TrackedRun) -> Tracker:
        self._configs.append(run.config)
        return Diary()


def test_trackers_are_told_the_parent_of_a_fork(config: RunConfig, lease: Lease):
    diary = DiaryConfig()
    branch = Branch("runs/trunk", "ab12", 20, "0" * 64, {"optimizer.lr": (1e-3, 1e-4)})
    for provenance in ({}, branch.to_provenance()):
        config.folder.create(config="", provenance=provenance)
        with make_recorder(config.model_copy(update={"trackers": (diary,)}), lease) as recorder:
            recorder.resume_at(TrainState(step=20), None)
    original, forked = diary._configs
    assert "forked_from" not in original
    assert forked["forked_from"]["step"] == 20
    assert forked["forked_from"]["changed"] == {"optimizer.lr": [1e-3, 1e-4]}
    assert forked["max_steps"] == original["max_steps"]
