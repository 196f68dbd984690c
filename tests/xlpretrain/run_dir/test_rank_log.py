"""What a rank says reaches its log as well, whatever becomes of the rank or of its terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

from xlpretrain.run_dir.rank_log import HEADING

SPEAK = """
import os, sys, time
from pathlib import Path
from xlpretrain.run_dir import rank_log
rank_log.copy_to(Path(sys.argv[1]))
print("to stdout", flush=True)
print("to stderr", file=sys.stderr, flush=True)
{then}
"""
DIE = "os.kill(os.getpid(), 9)"
GO_ON = """
sys.stdin.readline()  # the reader is gone by now
for _ in range(3):
    print("said to nobody", flush=True)
    time.sleep(0.1)
Path(sys.argv[1]).with_name("lived").touch()
"""


def speak(log: Path, then: str, **streams: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SPEAK.format(then=then), str(log)], text=True, **streams)  # type: ignore[call-overload,no-any-return]


def wait_for(log: Path, text: str) -> list[str]:
    """The lines of the log, once the text is in it."""
    deadline = time.monotonic() + 30
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return log.read_text().splitlines()


def test_a_rank_that_is_killed_has_been_heard_on_both_streams_and_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "rank-00000.log"
    for _ in range(2):
        process = speak(log, DIE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.communicate(timeout=30) == ("to stdout\n", "to stderr\n")
        assert process.returncode == -9
    lines = log.read_text().splitlines()
    assert [line.startswith(HEADING) for line in lines] == [True, False, False] * 2
    assert set(lines[1:3]) == set(lines[4:]) == {"to stdout", "to stderr"}


def test_a_terminal_that_goes_away_takes_neither_the_rank_nor_its_log_with_it(tmp_path: Path) -> None:
    log = tmp_path / "rank-00000.log"
    process = speak(log, GO_ON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    assert process.stdout.readline() == "to stdout\n"
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(30) == 0
    assert (tmp_path / "lived").exists()
    lines = wait_for(log, "said to nobody\n" * 3)
    process.stderr.close()
    assert lines[-3:] == ["said to nobody"] * 3


def test_a_terminal_stays_one_for_the_live_line(tmp_path: Path) -> None:
    log = tmp_path / "rank-00000.log"
    ours, its = pty.openpty()
    process = speak(log, "print(sys.stdout.isatty(), flush=True)", stdout=its, stderr=subprocess.PIPE)
    os.close(its)
    assert process.communicate(timeout=30)[1] == "to stderr\n"
    assert os.read(ours, 1000).decode().split() == ["to", "stdout", "True"]
    os.close(ours)
    assert wait_for(log, "to stderr\n")[1:] == ["to stderr"]
