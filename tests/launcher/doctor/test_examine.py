"""The process that runs checks: one that hangs or crashes is ended and told, and nothing is left behind.

Modules: worker.py, checks.py, channel.py, findings.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
from odd_disks import mounted

from launcher.doctor.checks import CHECKS
from launcher.doctor.examine import examine, remove
from launcher.doctor.findings import Finding, Level, failure, from_error, parse_findings, passed
from launcher.doctor.request import SCRATCH, Request
from xlpretrain.errors import DataError


@pytest.mark.full
def test_every_check_can_be_loaded():
    code = "from launcher.doctor import checks\nfor name in checks.CHECKS: checks.load(name)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_checks_run_in_order_and_each_finding_has_its_name(tmp_path: Path):
    request = Request(runs_dir=str(tmp_path), token="ab")
    found = list(examine(request, ["limits", "space", "clock"]))
    names = [finding.check for finding in found]
    assert list(dict.fromkeys(names)) == ["limits", "space", "clock"]


@pytest.mark.full
def test_a_check_that_hangs_is_ended_and_the_next_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a disk that does not answer: its process is stopped."""
    (tmp_path / "back").mkdir()
    monkeypatch.setitem(CHECKS, "space", CHECKS["space"]._replace(limit_s=4))
    with mounted(tmp_path / "back", tmp_path / "hangs", "-o", "attr_timeout=0,entry_timeout=0") as disk:
        disk.send_signal(signal.SIGSTOP)
        hangs, *others = examine(Request(runs_dir=str(tmp_path / "hangs")), ["space", "limits"])
        disk.send_signal(signal.SIGCONT)
    assert hangs.check == "space" and hangs.level == Level.FAIL and "no result within 4 s" in hangs.text
    assert {finding.check for finding in others} == {"limits"}


def test_a_check_that_crashes_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch):
    """A Python without its library cannot even begin."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    first, second = examine(Request(), ["limits", "versions"])
    assert [first.check, second.check] == ["limits", "versions"]
    assert first.level == Level.FAIL and "crashed with exit code 1" in first.text


@pytest.mark.full
@pytest.mark.parametrize(("number", "expect"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_behind(number: int, expect: int, tmp_path: Path):
    (tmp_path / "back").mkdir()
    with mounted(tmp_path / "back", tmp_path / "slow", "--write-rate=100k"):
        process = commands.start("doctor", "--only", "speed", "--runs-dir", tmp_path / "slow")
        _wait_for_scratch(tmp_path / "back")
        process.send_signal(number)
        out, err = commands.finish(process, expect=expect)
        assert "interrupted" in out and "Traceback" not in out + err, err
        assert list((tmp_path / "back").iterdir()) == []


@pytest.mark.full
def test_a_killed_doctor_leaves_nothing_behind_either(tmp_path: Path):
    (tmp_path / "back").mkdir()
    with mounted(tmp_path / "back", tmp_path / "slow", "--write-rate=1M"):
        process = commands.start("doctor", "--only", "speed", "--runs-dir", tmp_path / "slow")
        _wait_for_scratch(tmp_path / "back")
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 60
        while list((tmp_path / "back").iterdir()):
            assert time.monotonic() < deadline, "the folder is still there"
            time.sleep(0.05)


def _wait_for_scratch(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not [path for path in folder.glob(f"{SCRATCH}*/*") if path.stat().st_size]:
        assert time.monotonic() < deadline, "no check has begun to write"
        time.sleep(0.01)


def test_only_folders_of_this_examination_are_removed(tmp_path: Path):
    ours, theirs, other = (tmp_path / name for name in (f"{SCRATCH}ab-1", f"{SCRATCH}cd-1", "runs"))
    for path in (ours, theirs, other):
        path.mkdir()
        (path / "file").touch()
    assert remove([ours, theirs, other], "ab") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([theirs.name, "runs"])


def test_findings_survive_json_among_other_lines():
    one, two = passed("fine"), failure("bad", "mend it")
    found, others = parse_findings(f"noise\n{one.to_json()}\n[1]\n{two.to_json()}\n\n")
    assert found == [one, two] and others == ["noise", "[1]"]
    assert Finding.from_dict(two.to_dict()).level is Level.FAIL


def test_the_remedy_of_a_user_error_is_what_follows_its_first_semicolon():
    found = from_error(DataError("data: not a dataset; build it; or not"))
    assert (found.text, found.remedy) == ("data: not a dataset", "build it; or not")
    assert from_error(DataError("odd")).remedy == "see the message"
