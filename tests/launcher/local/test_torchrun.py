"""The local launcher: reports of failures, and signal handling.

Modules: interrupts.py.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch.distributed.run
from commands import environment
from repository import ROOT

from launcher.local import torchrun
from launcher.local.torchrun import Ended
from xlpretrain.errors import LaunchError

LAUNCH = """
from launcher.local import torchrun
ended = torchrun.launch("rank", [{mode!r}], num_processes=1, grace_s={grace_s}, cost=lambda: "3 steps")
print(ended, flush=True)
raise SystemExit(ended.code)
"""
RANK = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
print("ready", flush=True)
while True:
    time.sleep(0.05)
    if asked:
        asked.clear()  # before it is said: what is sent next counts
        print("heard", flush=True)
        if sys.argv[1] != "never ends":
            sys.exit(75)
"""


class Launch:
    """A launcher with one rank in a subprocess, since signals need the main thread."""

    def __init__(self, folder: Path, mode: str, *, grace_s: int = 600):
        (folder / "rank.py").write_text(RANK)
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", LAUNCH.format(mode=mode, grace_s=grace_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment(), "PYTHONPATH": f"{folder}:{ROOT}"},
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
        )

    def says(self, text: str) -> str:
        """Read the output up to a line with this text."""
        assert self._process.stdout is not None
        said = ""
        while text not in said:
            line = self._process.stdout.readline()
            assert line, f"it ended before it printed {text!r}: {said}"
            said += line
        return said

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ends(self) -> tuple[int, str]:
        said, _ = self._process.communicate(timeout=60)
        return self._process.returncode, said


def test_ctrl_c_asks_then_warns_and_then_kills(tmp_path: Path) -> None:
    launch = Launch(tmp_path, "never ends")
    launch.says("ready")
    launch.send(signal.SIGHUP)
    launch.send(signal.SIGINT)
    said = launch.says("heard")
    assert said.splitlines()[0] == "Ctrl-C: saving and exiting"
    launch.send(signal.SIGINT)
    launch.says("press Ctrl-C again to kill the run now and lose 3 steps")
    launch.send(signal.SIGTERM)
    launch.says("heard")  # still alive; other signals may be repeated
    launch.send(signal.SIGINT)
    code, said = launch.ends()
    assert "killing the ranks" in said
    assert f"exit_code=-9, rank=0, signal={int(signal.SIGINT)})" in said, "SIGHUP was ignored"
    assert code == 128 + signal.SIGINT
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_ranks_whose_exit_code_counts(tmp_path: Path, number: signal.Signals) -> None:
    launch = Launch(tmp_path, "ends when asked")
    launch.says("ready")
    launch.send(number)
    code, said = launch.ends()
    expected = 75 if number == signal.SIGTERM else -number  # the rank has no handler for the other
    assert f"exit_code={int(expected)}, rank=0, signal={int(number)})" in said
    assert code == 128 + number


def test_ranks_that_do_not_exit_in_time_are_killed(tmp_path: Path) -> None:
    launch = Launch(tmp_path, "never ends", grace_s=1)
    launch.says("ready")
    launch.send(signal.SIGTERM)
    _, said = launch.ends()
    assert "did not exit within 1 s (stop.grace_s): killing them" in said
    assert f"exit_code=-9, rank=0, signal={int(signal.SIGTERM)})" in said


def test_the_output_of_torchrun_is_withheld_unless_it_fails_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(arguments: list[str]) -> NoReturn:
        print("usage: torchrun [-h]", file=sys.stderr)
        logging.getLogger("torch.distributed.run").warning("a word of warning")
        raise SystemExit(2)

    monkeypatch.setattr(torch.distributed.run, "main", refuse)
    monkeypatch.setenv("XLPRETRAIN_LAUNCHER", "")
    with pytest.raises(LaunchError, match=r"torchrun of torch .* itself failed \(SystemExit: 2\)"):
        torchrun.launch("rank", [], num_processes=1)
    said = capsys.readouterr().err
    assert "usage: torchrun [-h]" in said and "a word of warning" in said
    monkeypatch.setattr(torch.distributed.run, "main", lambda arguments: print("noise", file=sys.stderr))
    assert torchrun.launch("rank", [], num_processes=1) == Ended()
    assert capsys.readouterr().err == ""


def test_no_option_is_given_that_an_older_torchrun_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(torch.distributed.run, "main", given.extend)
    monkeypatch.setenv("XLPRETRAIN_LAUNCHER", "")
    torchrun.launch("rank", ["x"], num_processes=2)
    assert given == ["--standalone", "--nproc-per-node=2", "-m", "rank", "x"]


def test_a_killed_rank_is_described_in_words() -> None:
    assert Ended(3, 1).describe() == "rank 1 exited with code 3"
    assert Ended(-signal.SIGKILL, 1).describe().startswith("rank 1 was killed by SIGKILL (possibly")
    assert "SIGSEGV" in Ended(-signal.SIGSEGV, 0).describe()
    assert [Ended(0).code, Ended(2).code, Ended(-signal.SIGSEGV).code] == [0, 2, 128 + signal.SIGSEGV]
