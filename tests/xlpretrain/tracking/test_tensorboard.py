"""Event files, read back by TensorBoard's own reader. Modules: tensorboard.py."""

import os
import subprocess
import sys
from pathlib import Path

import guarded
import pytest
from guarded import finish, read_event_files, row, start
from small_disk import mount_small_disk

from xlpretrain.tracking.tensorboard import TensorBoardConfig


def expected(steps: range) -> list[tuple[int, float]]:
    return [(step, pytest.approx(step / 3)) for step in steps]


def test_every_step_is_there_once_after_a_stop_and_after_a_kill(tmp_path: Path):
    tracker = start(TensorBoardConfig(), tmp_path)
    for step in range(1, 6):
        tracker.log(row(step))
    finish(tracker)
    assert tracker.told == 5
    killed = start(TensorBoardConfig(), tmp_path, next_step=6)
    for step in range(6, 10):
        killed.log(row(step))
    finish(killed)
    (*_, last) = sorted((tmp_path / "tensorboard").iterdir())
    last.write_bytes(last.read_bytes()[:-20])  # the last record is cut in two
    again = start(TensorBoardConfig(), tmp_path, next_step=5, history=[row(5), row(6)])
    for step in range(7, 12):
        again.log(row(step, attempt=1))
    finish(again)
    assert read_event_files(tmp_path / "tensorboard") == expected(range(1, 12))


def test_steps_after_a_way_back_take_the_place_of_the_former_ones(tmp_path: Path):
    tracker = start(TensorBoardConfig(folder=tmp_path / "all"), tmp_path)
    for step in range(1, 9):
        tracker.log({"step": step, "train/loss": 100.0})
    tracker.go_back(4)
    for step in range(5, 8):
        tracker.log({"step": step, "train/loss": 1.0})
    finish(tracker)
    assert tracker.told == 7
    assert read_event_files(tmp_path / "all" / "mine") == [
        *((step, 100.0) for step in range(1, 5)),
        *((step, 1.0) for step in range(5, 8)),
    ]


KILLED = """
import os, sys, time
from pathlib import Path
import guarded
from xlpretrain.tracking.tensorboard import TensorBoardConfig
tracker = guarded.start(TensorBoardConfig(), Path(sys.argv[1]))
tracker._buffer_s = 0.0
for step in range(1, 51):
    tracker.log(guarded.row(step))
while tracker.told < 50:
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


def test_what_was_flushed_survives_a_kill(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert read_event_files(tmp_path / "tensorboard") == expected(range(1, 51))


def test_a_full_disk_switches_it_off_and_a_later_attempt_tells_what_is_missing(tmp_path: Path, caplog):
    disk = tmp_path / "disk"
    with mount_small_disk(disk, size="64k"):
        config = TensorBoardConfig(folder=disk)
        tracker = start(config, tmp_path)
        rows = [row(step) for step in range(1, 3001)]
        for each in rows:
            tracker.log(each)
        finish(tracker)
        assert "TensorBoard failed and is off for the rest of this attempt: " in caplog.text
        assert "No space left" in caplog.text
        told = tracker.told
        assert told < 3000
        for path in (disk / "mine").iterdir():
            path.unlink()
        again = start(config, tmp_path, history=rows[:100])
        finish(again)
        assert read_event_files(disk / "mine") == expected(range(1, 101))


def test_it_is_a_tracker_of_its_own_thread_and_hands_on_the_times(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = start(TensorBoardConfig(), tmp_path)
    tracker.log(row(3))
    finish(tracker)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    (event,) = accumulator.Scalars("train/loss")
    assert event.wall_time == guarded.LOGGED_AT_S + 3
