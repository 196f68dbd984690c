"""Trackers that fail in every way, beside one that does not. Modules: base.py."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import guarded
import pytest
from guarded import finish, row, start
from pydantic import PrivateAttr

from xlpretrain.errors import ConfigError
from xlpretrain.tracking import MlflowConfig, TensorBoardConfig, WandbConfig
from xlpretrain.tracking import guard as guard_module
from xlpretrain.tracking.base import TrackedRun, Tracker, TrackerConfig
from xlpretrain.tracking.guard import Trackers

Fault = Callable[[str], None]


def _do_nothing(called: str) -> None:
    pass


class Notebook(Tracker):
    """Notes what it is told. `fault` is called with the name of each call first."""

    def __init__(self, notes: list[object], fault: Fault):
        self._notes, self._fault = notes, fault

    def log(self, metrics: Mapping[str, float | int]) -> None:
        self._fault(f"log {metrics['step']}")
        self._notes.append(metrics["step"])

    def flush(self) -> None:
        self._fault("flush")

    def go_back(self, step: int) -> None:
        self._notes.append(f"back to {step}")

    def close(self, state: str) -> None:
        self._fault("close")
        self._notes.append(state)


class NotebookConfig(TrackerConfig):
    """A tracker that notes what it is told."""

    type: Literal["notebook", "second"] = "notebook"
    buffer_s = 0.0
    _notes: list[object] = PrivateAttr(default_factory=list)
    _fault: Fault = PrivateAttr(default_factory=lambda: _do_nothing)

    def build(self, run: TrackedRun) -> Tracker:
        self._fault("build")
        self._notes.append(f"from {run.next_step}")
        return Notebook(self._notes, self._fault)


class ImpatientConfig(NotebookConfig):
    """It may take a fifth of a second for a call."""

    timeout_s = 0.2


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set at the end of the test, so that no thread hangs for ever."""
    event = threading.Event()
    yield event
    event.set()


def faulty(config: NotebookConfig, fault: Fault) -> NotebookConfig:
    config._fault = fault
    return config


def raise_at(name: str, error: BaseException) -> Fault:
    def fault(called: str) -> None:
        if called == name:
            raise error

    return fault


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + guarded.PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(3), KeyboardInterrupt(), MemoryError()], ids=repr)
@pytest.mark.parametrize("at", ["build", "log 2", "close"])
def test_whatever_it_raises_switches_off_it_alone_with_one_line(tmp_path: Path, caplog, at: str, error: BaseException):
    broken = faulty(NotebookConfig(type="second"), raise_at(at, error))
    sound = NotebookConfig()
    trackers = Trackers([broken, sound], TrackedRun("id", "mine", tmp_path, {}), rows=[], told={})
    for step in range(1, 5):
        trackers.log(row(step))
    trackers.close("finished")
    assert sound._notes == ["from 1", 1, 2, 3, 4, "finished"]
    assert 2 not in broken._notes or at == "close"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"second failed and is off for the rest of this attempt: {type(error).__name__}")
    assert trackers.told["notebook"] == 4
    assert trackers.told["second"] < 4 or at == "close"


@pytest.mark.parametrize("at", ["build", "log 1", "flush"])
def test_one_that_hangs_is_left_behind_and_nothing_waits_for_it(
    tmp_path: Path, caplog, monkeypatch, released: threading.Event, at: str
):
    monkeypatch.setattr(guard_module, "_START_S", 0.1)
    hanging = faulty(ImpatientConfig(), lambda called: called == at and released.wait())
    tracker = start(hanging, tmp_path)
    tracker.log(row(1))
    wait_until(lambda: tracker.log(row(2)) or "notebook failed and is off" in caplog.text)
    assert "no answer in 0 s" in caplog.text
    before = list(hanging._notes)
    released.set()
    finish(tracker)
    tracker._ended.wait(guarded.PATIENCE_S)
    assert [note for note in hanging._notes if note not in before and note != "from 1"] in ([], [1])
    assert tracker.told == 0 and len(caplog.records) == 1


def test_one_that_hangs_at_the_end_does_not_hold_it_up(tmp_path: Path, caplog, monkeypatch, released: threading.Event):
    monkeypatch.setattr(guard_module, "_CLOSE_S", 0.1)
    hanging = faulty(NotebookConfig(), lambda called: called == "close" and released.wait())
    trackers = Trackers([hanging], TrackedRun("id", "mine", tmp_path, {}), rows=[], told={})
    trackers.log(row(1))
    wait_until(lambda: trackers.told == {"notebook": 1})
    trackers.close("finished")
    assert "still at work" in caplog.text


def test_a_backlog_switches_it_off(tmp_path: Path, caplog, monkeypatch, released: threading.Event):
    monkeypatch.setattr(guard_module, "_MAX_WAITING", 10)
    slow = faulty(NotebookConfig(), lambda called: called == "log 1" and released.wait())
    tracker = start(slow, tmp_path)
    for step in range(1, 20):
        tracker.log(row(step))
    assert "notebook failed and is off for the rest of this attempt: 10 steps behind" in caplog.text


def test_it_is_told_what_it_missed_and_nothing_twice(tmp_path: Path):
    rows = [row(step) for step in (10, 20, 30, 40)]
    run, seen, missed, new = TrackedRun("id", "mine", tmp_path, {}), {}, {}, {}
    for told, notes in (({"notebook": 40}, seen), ({"notebook": 20}, missed), ({}, new), ({"notebook": 57}, seen)):
        config = NotebookConfig()
        trackers = Trackers([config], run, rows=rows, told=told)
        trackers.log(row(50))
        trackers.close("stopped")
        notes["notes"] = config._notes
        assert trackers.told == {"notebook": 50}
    assert seen["notes"] == ["from 41", 50, "stopped"]
    assert missed["notes"] == ["from 21", 30, 40, 50, "stopped"]
    assert new["notes"] == ["from 1", 10, 20, 30, 40, 50, "stopped"]


def test_what_others_were_told_in_earlier_attempts_is_remembered(tmp_path: Path):
    run = TrackedRun("id", "mine", tmp_path, {})
    trackers = Trackers([NotebookConfig()], run, rows=[row(10), row(20)], told={"wandb": 20, "mlflow": 10})
    trackers.go_back(15)
    trackers.close("stopped")
    assert trackers.told == {"wandb": 15, "mlflow": 10, "notebook": 15}


def test_told_steps_that_were_undone_are_not_told(tmp_path: Path):
    config = NotebookConfig()
    tracker = start(config, tmp_path)
    for step in range(1, 9):
        tracker.log(row(step))
    tracker.go_back(4)
    assert tracker.told <= 4
    tracker.log(row(5))
    assert tracker.told <= 5
    finish(tracker)
    assert config._notes == ["from 1", *range(1, 9), "back to 4", 5, "stopped"]
    assert tracker.told == 5


class BufferedConfig(NotebookConfig):
    """What it was given may be lost for an hour."""

    buffer_s = 3600.0


def test_what_may_still_be_lost_does_not_count_as_told_until_it_is_closed(tmp_path: Path):
    config = BufferedConfig()
    tracker = start(config, tmp_path)
    tracker.log(row(1))
    wait_until(lambda: len(tracker._handed_on) > 1)
    assert tracker.told == 0
    finish(tracker)
    assert tracker.told == 1


class LackingConfig(NotebookConfig):
    """It needs what is not there."""

    package = "no_such_package"


@pytest.mark.parametrize("config", [LackingConfig, WandbConfig, TensorBoardConfig, MlflowConfig])
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(config: type[TrackerConfig], monkeypatch):
    monkeypatch.setitem(sys.modules, config.package, None)
    asked = config(mode="offline") if config is WandbConfig else config()
    with pytest.raises(ConfigError) as caught:
        asked.check()
    command = f'pip install "xlpretrain[{asked.type}]"' if asked.type != "notebook" else "pip install no_such_package"
    (line,) = str(caught.value).splitlines()
    assert (
        line == f"trackers: {asked.type} needs the Python package {config.package}, which is not installed; {command}"
    )


def test_the_default_one_goes_without_its_package_and_says_so(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    WandbConfig().check()
    finish(start(WandbConfig(), tmp_path))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == 'W&B is not installed, so metrics are not logged to it; pip install "xlpretrain[wandb]"'


@pytest.mark.parametrize("switch", ["WANDB_MODE=disabled", "WANDB_DISABLED=true", "mode"])
def test_one_that_is_disabled_does_not_miss_its_package(tmp_path: Path, monkeypatch, caplog, switch: str):
    monkeypatch.setitem(sys.modules, "wandb", None)
    if "=" in switch:
        monkeypatch.setenv(*switch.split("="))
    finish(start(WandbConfig(mode="auto" if "=" in switch else "disabled"), tmp_path))
    assert caplog.records == []


def test_a_folder_of_the_packages_name_is_not_the_package(tmp_path: Path, monkeypatch):
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not LackingConfig().is_installed


def test_the_page_of_a_run_is_that_of_the_first_tracker_that_has_one(tmp_path: Path):
    class Page(Notebook):
        url = "https://example.com/run"

    class PageConfig(NotebookConfig):
        type: Literal["second"] = "second"

        def build(self, run: TrackedRun) -> Tracker:
            return Page(self._notes, self._fault)

    run = TrackedRun("id", "name", tmp_path, {})
    trackers = Trackers([NotebookConfig(), PageConfig()], run, rows=[], told={})
    assert trackers.url == "https://example.com/run"
    trackers.close("finished")
    trackers = Trackers([NotebookConfig()], run, rows=[], told={})
    assert trackers.url == ""
    trackers.close("finished")
