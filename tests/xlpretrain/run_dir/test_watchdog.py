import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xlpretrain.errors import FENCED, HUNG
from xlpretrain.run_dir import lease

WATCHED = """
import os, sys, threading, time
from pathlib import Path
from xlpretrain.run_dir import lease, watchdog
from xlpretrain.run_dir.lease import Process
watchdog._LOOK_EVERY_S, watchdog._FOR_OTHERS_S = 0.05, 0.3
run, peers = Path(sys.argv[1]), [Process(*peer) for peer in eval(sys.argv[2])]
config = watchdog.WatchdogConfig(timeout_s=0.5, startup_s=0.5)
with watchdog.Watchdog() as dog:
    dog.on_hang = lambda reason: print("hung:", reason, flush=True)
    mine = lease.Lease(run / "lease", 1, (run / "lease" / "00000001").read_text())
    dog.guard(config, peers=peers, lease=mine, stacks=run / "logs" / "rank.txt")
    print("up", flush=True)
    def works_then_waits_for_ever():
        for _ in range(5):
            time.sleep(0.15)
            dog.progress()
        dog.progress(9.0)
        time.sleep(0.8)  # longer than the timeout, and allowed this once
        dog.progress()
        print("waiting", flush=True)
        threading.Event().wait()
    works_then_waits_for_ever()
"""


def watched(tmp_path: Path, peers: list | None = None, *, parent: str = "", rank: bool = True) -> subprocess.Popen[str]:
    """A process under a watchdog, with the lease of the run in tmp_path."""
    lease.acquire(tmp_path / "lease", launch_id="", take_over=True)
    # exec: this test is its launcher; else a shell between them is.
    command = f'{"RANK=0" if rank else ""} {"" if parent else "exec"} "$0" -c "$1" "$2" "$3"{parent}'
    arguments = [sys.executable, WATCHED, str(tmp_path), repr([tuple(peer) for peer in peers or []])]
    return subprocess.Popen(
        ["sh", "-c", command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_rank_that_hangs_leaves_its_stacks_kills_who_cannot_end_and_ends(tmp_path: Path):
    stopped = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"])
    peer = lease.Process.of(stopped.pid)
    process = watched(tmp_path, [peer])
    out, told = process.communicate(timeout=20)
    stacks = tmp_path / "logs" / "rank.txt"
    reason = f"no progress for 0.5 s; see its stacks in {stacks}"
    assert out == f"up\nwaiting\nhung: {reason}\n", "progress counts"
    assert (process.returncode, stopped.wait(5)) == (HUNG, -signal.SIGKILL)
    assert told == f"error: rank 0 exits: {reason}\n"
    assert "works_then_waits_for_ever" in stacks.read_text()


def test_a_run_that_was_suspended_does_not_hang_and_writes_nothing_once_it_lost_its_lease(tmp_path: Path):
    process = watched(tmp_path)
    assert process.stdout and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.2)  # more than its watchdog would have waited
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGSTOP)
    lease.acquire(tmp_path / "lease", launch_id="", take_over=True)
    process.send_signal(signal.SIGCONT)
    assert process.wait(10) == FENCED
    assert [path.name for path in tmp_path.iterdir()] == ["lease"]
    process.communicate()


def test_a_rank_ends_with_another_of_its_machine(tmp_path: Path):
    peer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = watched(tmp_path, [lease.Process.of(peer.pid)])
    assert process.stdout and process.stdout.readline() == "up\n"
    assert process.poll() is None
    peer.kill()
    _, told = process.communicate(timeout=5)
    assert (process.returncode, told) == (1, f"error: rank 0 exits: another rank (process {peer.pid}) is gone\n")
    peer.wait()


def test_a_rank_ends_whose_launcher_has_died_before_it_could_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gone = json.dumps(lease.Process.this()._replace(started="1"))
    monkeypatch.setenv("XLPRETRAIN_LAUNCHER", gone)
    process = watched(tmp_path)
    _, told = process.communicate(timeout=5)
    assert (process.returncode, told) == (1, "error: rank 0 exits: its launcher is gone\n")


def test_a_rank_ends_with_its_launcher_but_nobody_ends_with_a_shell(tmp_path: Path):
    launched, alone = (watched(tmp_path / str(rank), parent="; true", rank=rank) for rank in (True, False))
    for process in (launched, alone):
        assert process.stdout and process.stdout.readline() == "up\n"
        process.kill()  # the shell
    assert launched.stdout and alone.stdout
    assert launched.stdout.read() == "", "it exits before it has finished"
    assert alone.stdout.readline() == "waiting\n"
    launched.communicate()
    alone.communicate()
