import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xlpretrain.errors import FENCED, LaunchError, LeaseLostError
from xlpretrain.file_system.atomic_files import atomic_write, atomic_writer
from xlpretrain.run_dir import lease
from xlpretrain.run_dir.lease import Lease, Process
from xlpretrain.tracking.metrics_file import MetricsFile, read_metrics


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "lease"


def take(folder: Path, launch_id: str = "", *, take_over: bool = False) -> Lease:
    return lease.acquire(folder, launch_id=launch_id, take_over=take_over)


def age(folder: Path, number: int, by_s: float) -> None:
    """Let the last heartbeat be `by_s` seconds ago."""
    os.utime(folder / f"{number:08d}", (time.time() - by_s,) * 2)


def test_the_first_takes_it_and_the_second_is_told_who_has_it(folder: Path):
    take(folder).check()
    said = rf"{folder.parent}: is in use on .*process {os.getpid()}, .*--force-takeover"
    with pytest.raises(LaunchError, match=said):
        take(folder)
    assert [path.name for path in folder.iterdir()] == ["00000001"]


@pytest.mark.parametrize("why", ["released", "asked", "silent", "the same launcher"])
def test_who_may_take_over_does_and_the_older_owner_learns_it(folder: Path, why: str):
    older = take(folder, "launcher")
    if why == "released":
        older.start_heartbeat()
        older.close()
    if why == "silent":
        age(folder, 1, lease.STALE_S + 5)
    newer = take(folder, "launcher" if why == "the same launcher" else "", take_over=why == "asked")
    assert newer.number == 2
    newer.check()
    with pytest.raises(LeaseLostError, match="another attempt"):
        older.check()
    older.close()
    newer.check()
    assert [path.name for path in folder.iterdir()] == ["00000002"]


@pytest.mark.parametrize("by_s", [lease.STALE_S - 15, 0])
def test_less_than_a_minute_old_a_heartbeat_is_alive_also_where_neither_has_a_launcher(folder: Path, by_s: float):
    take(folder)
    age(folder, 1, by_s)
    with pytest.raises(LaunchError):
        take(folder)


def test_an_owner_known_to_be_dead_is_replaced_at_once(folder: Path):
    code = "import sys; from pathlib import Path; from xlpretrain.run_dir import lease\n"
    code += "lease.acquire(Path(sys.argv[1]), launch_id='x', take_over=False)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    assert take(folder).number == 2


def test_of_an_owner_elsewhere_nothing_is_known_but_its_heartbeat(folder: Path):
    take(folder)
    path = folder / "00000001"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "host": "elsewhere", "process": ["another boot", 1, "0"]}))
    with pytest.raises(LaunchError, match="in use on elsewhere"):
        take(folder)
    path.write_text("")  # it died while it took it
    with pytest.raises(LaunchError, match="is in use"):
        take(folder)
    age(folder, 1, lease.STALE_S + 5)
    assert take(folder).number == 2


def test_a_run_removed_and_begun_anew_is_not_the_old_ones(folder: Path):
    older = take(folder)
    (folder / "00000001").unlink()
    newer = take(folder)
    assert newer.number == older.number
    newer.check()
    with pytest.raises(LeaseLostError):
        older.check()


def test_of_many_that_start_at_once_one_has_it(folder: Path):
    code = "import sys; from pathlib import Path; from xlpretrain import errors; from xlpretrain.run_dir import lease\n"
    code += "sys.stdin.read()\ntry: l = lease.acquire(Path(sys.argv[1]), launch_id='', take_over=False)\n"
    code += "except errors.LaunchError: sys.exit(3)\nimport time; time.sleep(0.5); l.check()"
    command = [sys.executable, "-c", code, str(folder)]
    starts = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(8)]
    time.sleep(0.5)
    for start in starts:
        assert start.stdin
        start.stdin.close()
    assert sorted(start.wait() for start in starts) == [0] + [3] * 7
    assert [path.name for path in folder.iterdir()] == ["00000001"]


def test_what_an_older_owner_was_about_to_rename_is_gone(folder: Path):
    older = take(folder)
    status = folder.parent / "status.json"

    def overtaken_after_the_last_look() -> None:
        older.check()
        take(folder, take_over=True)
        atomic_write(status, "newer")

    with pytest.raises(FileNotFoundError):
        atomic_write(status, "older", fence=overtaken_after_the_last_look)
    with pytest.raises(LeaseLostError):
        atomic_write(status, "older", fence=older.check)
    assert status.read_text() == "newer"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["lease", "status.json"]


def test_a_start_removes_half_written_files_of_older_ones_and_no_others(folder: Path):
    take(folder)
    with atomic_writer(folder.parent / "status.json") as temporary:
        temporary.touch()
        left = temporary.name
    (folder.parent / "status.json").unlink()
    for name in (left, ".notes.tmp"):
        (folder.parent / name).write_text("half")
    (folder.parent / ".code.0123456789abcdef.tmp").mkdir()
    take(folder, take_over=True)
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        ".code.0123456789abcdef.tmp",
        ".notes.tmp",
        "lease",
    ]


def test_what_an_older_owner_appends_goes_nowhere(folder: Path):
    older = take(folder)
    path = folder.parent / "metrics.jsonl"
    unfenced = MetricsFile(path)
    unfenced.truncate_to_step(0)
    unfenced.append({"step": 1})
    newer = MetricsFile(path, fence=take(folder, take_over=True).check)
    newer.truncate_to_step(1)
    unfenced.append({"step": 2, "train/loss": 666.0})  # it had looked at the lease, and was stopped just then
    newer.append({"step": 2, "train/loss": 1.0})
    with pytest.raises(LeaseLostError):
        MetricsFile(path, fence=older.check).append({"step": 3})
    unfenced.close()
    newer.close()
    assert list(read_metrics(path)) == [{"step": 1}, {"step": 2, "train/loss": 1.0}]


def test_a_process_that_hangs_ends_within_seconds_of_losing_the_lease(folder: Path):
    code = "import sys; from pathlib import Path; from xlpretrain.run_dir import lease\n"
    code += "lease.acquire(Path(sys.argv[1]), launch_id='', take_over=False).start_heartbeat()\n"
    code += "print('taken', flush=True)\n"
    code += "import threading; threading.Lock().acquire(); threading.Event().wait()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "taken\n"
    process.send_signal(signal.SIGSTOP)
    take(folder, take_over=True)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=lease.HEARTBEAT_S + 3)
    assert process.returncode == FENCED
    assert told == f"error: {folder.parent}: another attempt has taken over the run; this one exits\n"


def test_a_launcher_learns_that_another_has_the_run(folder: Path):
    take(folder, "first")
    assert not lease.is_lost(folder, launch_id="second", since=1)
    take(folder, "first")
    assert not lease.is_lost(folder, launch_id="first", since=1)
    assert lease.is_lost(folder, launch_id="second", since=1)


def test_a_process_is_not_mistaken_for_another_with_its_number():
    this = Process.this()
    assert not this.is_dead
    assert this._replace(started="1").is_dead
    assert not this._replace(machine="elsewhere", started="1").is_dead
