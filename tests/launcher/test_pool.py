"""Processes, several at a time: their devices, failures and signals."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from launcher import pool as pools
from launcher.pool import Command, Pool, Slot, describe_failure, divide_machine, log_sizes
from xlpretrain.errors import ConfigError


def _command(folder: Path, name: str, code: str, *arguments: str) -> Command:
    return Command(name, [sys.executable, "-S", "-c", code, *arguments], folder / f"{name}.log")


def test_each_process_has_a_slot_and_a_failure_loses_no_other(tmp_path: Path):
    meet = (  # ends once both have begun, so they run at a time
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1], os.environ['CUDA_VISIBLE_DEVICES']).touch()\n"
        "while len(list(pathlib.Path(sys.argv[1]).iterdir())) < 2: time.sleep(0.01)\n"
        "print('on', os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    place = tmp_path / "place"
    place.mkdir()
    told = []
    slots = [Slot(gpus=[number]) for number in "01"]
    commands = [_command(tmp_path, name, meet, str(place)) for name in ("a", "b")]
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
    pool = Pool([Slot()], lambda *_: None)
    ended = pool.run([_command(tmp_path, "a", code), _command(tmp_path, "b", "")])
    assert ended == {"a": "stopped"} and pool.stopped_by == number
    assert (tmp_path / "a.log").read_text() == "saved\n" and not (tmp_path / "b.log").exists()
    assert signal.getsignal(number) == before


def test_a_slot_limits_devices_and_runs_one_command_after_another(tmp_path: Path):
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], len(os.sched_getaffinity(0)), file=open({!r}, 'a'))"
    slow = "import time; time.sleep(0.2)\n" + code.format(str(tmp_path / "printed"))
    events = []
    slot = Slot(gpus=["4", "6"], cores=[min(os.sched_getaffinity(0))])
    Pool([slot], lambda event, command, *_: events.append((event, command.name))).run(
        [_command(tmp_path, name, slow) for name in "ab"]
    )
    assert events == [("started", "a"), ("finished", "a"), ("started", "b"), ("finished", "b")]
    assert (tmp_path / "printed").read_text() == "4,6 1\n" * 2


def test_gpus_are_divided_evenly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pools, "visible_gpus", lambda: list("01234567"))
    assert divide_machine(1) == [Slot()]
    assert [slot.gpus for slot in divide_machine(3)] == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert [slot.gpus for slot in divide_machine(2, num_processes=1)] == [["0"], ["1"]]
    with pytest.raises(ConfigError, match="--jobs 9: 9 times 1 processes need 9 GPUs, not 8"):
        divide_machine(9)


def test_cores_are_divided_evenly_where_they_suffice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pools, "visible_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5, 8, 9})
    assert [slot.cores for slot in divide_machine(2)] == [[3, 4], [5, 8]]
    assert divide_machine(6) == [Slot()] * 6


def test_a_failure_is_described_by_the_words_of_its_own_attempt(tmp_path: Path):
    command = _command(tmp_path, "a", "import sys; sys.exit(3)")
    assert command.log is not None
    command.log.parent.mkdir(parents=True, exist_ok=True)
    command.log.write_text("error: of an earlier attempt\n")
    sizes, codes = log_sizes([command]), []
    assert Pool([Slot()], lambda event, of, code, seconds: codes.append(code)).run([command]) == {"a": "failed"}
    assert describe_failure(codes[-1], command.log, since=sizes["a"]) == "exit code 3"
    assert "earlier attempt" in describe_failure(codes[-1], command.log)
