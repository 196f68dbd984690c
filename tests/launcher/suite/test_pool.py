"""Processes, several at a time: their devices, failures and signals."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from launcher.suite.pool import Command, Pool


def _command(folder: Path, name: str, code: str) -> Command:
    return Command(name, [sys.executable, "-S", "-c", code], folder / f"{name}.log")


def test_each_process_has_a_slot_and_a_failure_loses_no_other(tmp_path: Path):
    meet = (  # ends once both have begun, so they run at a time
        "import os, pathlib, time\n"
        "pathlib.Path(os.environ['PLACE'], os.environ['DEVICE']).touch()\n"
        "while len(list(pathlib.Path(os.environ['PLACE']).iterdir())) < 2: time.sleep(0.01)\n"
        "print('on', os.environ['DEVICE'])"
    )
    place = tmp_path / "place"
    place.mkdir()
    told = []
    slots = [{"DEVICE": number, "PLACE": str(place)} for number in "01"]
    commands = [_command(tmp_path, name, meet) for name in ("a", "b")]
    commands += [_command(tmp_path, "c", "import sys; print('error: no'); sys.exit(3)"), _command(tmp_path, "d", "")]
    pool = Pool(slots, lambda event, command, code, seconds: told.append((event, command.name, code)))
    ended = pool.run(commands)
    assert ended == {"a": "finished", "b": "finished", "c": "failed", "d": "finished"} and not pool.stopped_by
    assert {(tmp_path / f"{name}.log").read_text() for name in "ab"} == {"on 0\n", "on 1\n"}
    assert ("failed", "c", 3) in told and [name for event, name, _ in told if event == "started"] == list("abcd")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_forwarded_and_nothing_else_is_started(tmp_path: Path, number: signal.Signals):
    """The process tells when it can hear the signal, and saves before it exits."""
    code = (
        "import os, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        f"os.kill({os.getpid()}, {int(number)})\n"
        "time.sleep(60)"
    )
    before = signal.getsignal(number)
    pool = Pool([{}], lambda *_: None)
    ended = pool.run([_command(tmp_path, "a", code), _command(tmp_path, "b", "")])
    assert ended == {"a": "stopped"} and pool.stopped_by == number
    assert (tmp_path / "a.log").read_text() == "saved\n" and not (tmp_path / "b.log").exists()
    assert signal.getsignal(number) == before
