import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import environment

from xlpretrain.run_dir.stop import SOFT_SIGNALS, STOP_SIGNALS, StopRequest


def request(tmp_path: Path, time_budget_s: float | None = None) -> StopRequest:
    return StopRequest(stop_file=tmp_path / "STOP", time_budget_s=time_budget_s)


def test_nothing_asks_at_first(tmp_path: Path):
    assert request(tmp_path).reason() is None


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_is_a_request_and_the_old_handlers_come_back(tmp_path: Path, number: signal.Signals):
    before = signal.getsignal(number)
    stop = request(tmp_path)
    with stop.install_handlers():
        os.kill(os.getpid(), number)
        assert stop.reason() == "signal"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", SOFT_SIGNALS)
def test_a_warning_that_comes_too_early_is_kept(tmp_path: Path, number: signal.Signals):
    program = f"""
import os, pathlib, torch
from xlpretrain.run_dir.stop import StopRequest
stop = StopRequest(stop_file=pathlib.Path("STOP"), time_budget_s=None)
os.kill(os.getpid(), {number})
assert stop.reason() is None
with stop.install_handlers():
    assert stop.reason() == "signal"
"""
    # Before anything starts a thread, which would hear what this one does not.
    early = "from xlpretrain.run_dir.stop import block_signals; block_signals()"
    subprocess.run([sys.executable, "-c", early + program], cwd=tmp_path, env=environment(), check=True)


def test_a_stop_file_is_seen_within_a_second(tmp_path: Path):
    stop = request(tmp_path)
    assert stop.reason() is None
    (tmp_path / "STOP").touch()
    time.sleep(0.6)
    assert stop.reason() == "user"


def test_the_time_budget_runs_from_the_start(tmp_path: Path):
    stop = request(tmp_path, time_budget_s=0.05)
    assert stop.reason() is None
    time.sleep(0.06)
    assert stop.reason() == "time"
