"""Disks: each fault is made by the kernel, a FUSE mount or a library, and found.

Modules: places.py, witness.py, channel.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import commands
import pytest
from commands import write_config
from odd_disks import FAKETIME, library_without_exclusive, mounted, require_installed
from small_disk import mount_small_disk

from launcher.doctor.disks import clock, names, space, speed
from launcher.doctor.disks.places import Place, places, scratch
from launcher.doctor.disks.witness import LocalWitness
from launcher.doctor.findings import Finding, Level
from launcher.doctor.request import Request

CACHED = ("-o", "attr_timeout=20,entry_timeout=20,negative_timeout=20")
"""Options with which a mount keeps what it has seen for 20 s, as clients of NFS do."""


def about(folder: Path, found: list[Finding]) -> list[Finding]:
    """Findings on one place, not on TMPDIR."""
    return [finding for finding in found if finding.text.startswith(f"{folder} (")]


def test_a_sound_disk_passes_every_check_and_nothing_is_left_on_it(tmp_path: Path):
    request = Request(runs_dir=str(tmp_path / "runs" / "not-there-yet"))
    for check in (space.check, speed.check, names.check, clock.check):
        found = list(check(request))
        assert found
        assert {finding.level for finding in found} <= {Level.PASS, Level.WARN}, found  # a busy machine's disk is slow
    assert list(tmp_path.iterdir()) == []


def test_folders_of_one_disk_are_checked_once_and_missing_ones_by_their_parent(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (place,) = places(Request(runs_dir=str(tmp_path / "runs")))
    assert place == Place(tmp_path, ("runs", "TMPDIR"), True)
    with mount_small_disk(tmp_path / "disk", size="200k"):
        runs, temporary = places(Request(runs_dir=str(tmp_path / "disk" / "runs")))
        assert (runs.folder, temporary.uses) == (tmp_path / "disk", ("TMPDIR",))


def test_a_full_disk_fails(small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    request = Request(runs_dir=str(small_disk))
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    (too_little,) = about(small_disk, list(space.check(request)))
    assert too_little.level == Level.FAIL and "0 B free" in too_little.text and "free space" in too_little.remedy
    (unwritable,) = about(small_disk, list(speed.check(request)))
    assert unwritable.level == Level.FAIL and "No space left on device" in unwritable.text
    monkeypatch.setenv("TMPDIR", str(small_disk))
    (temporary,) = [one for one in speed.check(Request(runs_dir="/proc")) if "(TMPDIR)" in one.text]
    assert temporary.level == Level.FAIL and "TMPDIR" in temporary.remedy
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_too_little_space_for_the_checkpoints_is_told_before_the_disk_is_full(small_disk: Path):
    place = Place(small_disk, ("runs",), True)
    free = 200 << 10
    assert space.check_space(place, needed=4 << 20, smallest=2 << 20).level == Level.FAIL
    fits = Place(small_disk.parent, ("runs",), True)
    assert space.check_space(fits, needed=free, smallest=free).level == Level.PASS
    scarce = space.check_space(fits, needed=1 << 60, smallest=1 << 20)
    assert scarce.level == Level.WARN and "checkpoint.keep" in scarce.remedy


@pytest.mark.full
def test_the_expected_size_of_a_checkpoint_is_that_of_a_run(tmp_path: Path, tiny_dataset: Path, monkeypatch):
    """Without memories, which are not counted."""
    model = {"type": "transformer_xl", "num_layers": 2, "d_model": 64, "num_heads": 2, "d_ff": 256, "mem_len": 0}
    config = write_config(
        tmp_path / "config.yaml",
        tiny_dataset,
        model=model,
        engine={"type": "plain"},
        max_steps=2,
        eval={"max_tokens": 100},
    )
    monkeypatch.setitem(commands.EXTRA, "WANDB_MODE", "disabled")
    commands.run("train", config, "schedule.warmup_steps=1", "--nproc", 1)
    (saved,) = (tmp_path / "runs" / "run" / "checkpoints").glob("step-*")
    size = sum(path.stat().st_size for path in saved.iterdir())
    loaded = Request(config=str(config)).load_config()
    assert loaded is not None
    expected = space.checkpoint_bytes(loaded)
    assert expected is not None and expected <= size <= 1.1 * expected, (expected, size)


def test_a_disk_without_inodes_fails(tmp_path: Path):
    with mount_small_disk(tmp_path / "disk", size="4m,nr_inodes=3"):
        for number in range(2):
            (tmp_path / "disk" / str(number)).touch()
        (found,) = about(tmp_path / "disk", list(space.check(Request(runs_dir=str(tmp_path / "disk")))))
    assert found.level == Level.FAIL and "no inode is free" in found.text


def test_a_slow_disk_is_named_with_its_rate(tmp_path: Path):
    (tmp_path / "back").mkdir()
    with mounted(tmp_path / "back", tmp_path / "slow", "--write-rate=2M"):
        (found,) = about(tmp_path / "slow", list(speed.check(Request(runs_dir=str(tmp_path / "slow")))))
    assert found.level == Level.WARN and "slower than 30 MB/s" in found.remedy, found
    assert list((tmp_path / "back").iterdir()) == []


def test_names_that_stay_hidden_are_found(tmp_path: Path):
    """Two mounts of one folder, each with its own cache, as on two nodes; the witness looks through the second."""
    (tmp_path / "back").mkdir()
    with (
        mounted(tmp_path / "back", tmp_path / "node1", *CACHED),
        mounted(tmp_path / "back", tmp_path / "node2", *CACHED),
        scratch(tmp_path / "node1", Request()) as folder,
        LocalWitness(tmp_path / "node2" / folder.name) as witness,
    ):
        assert names.check_exclusive("disk", folder, witness).level == Level.PASS
        found = names.check_visible("disk", folder, witness)
    assert found.level == Level.WARN, found
    assert "names stay hidden" in found.text and "a new name" in found.text and "a heartbeat" in found.text
    assert "lookupcache" in found.remedy


def test_folders_that_are_not_shared_are_no_common_disk(tmp_path: Path):
    """A witness whose listing never shows the file: the folder of another disk."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with LocalWitness(tmp_path / "two") as witness:
        found = names.check_visible("disk", tmp_path / "one", witness)
        assert found.level == Level.FAIL and "does not list a new file" in found.text
        assert names.check_exclusive("disk", tmp_path / "one", witness).level == Level.FAIL


def test_no_exclusive_creation_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(commands.EXTRA, "LD_PRELOAD", str(library_without_exclusive(tmp_path)))
    runs = tmp_path / "runs"
    runs.mkdir()
    out, _ = commands.run("doctor", "--only", "names", "--runs-dir", runs, expect=2)
    assert "exclusive creation does not hold" in out and "two attempts could own one run" in out
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(("fake", "level"), [("+1h", "fail"), ("-30s", "warn")])
def test_a_clock_that_is_off_is_found(fake: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    require_installed(str(FAKETIME), "libfaketime")
    settings = {"FAKETIME": fake, "NO_FAKE_STAT": "1", "LD_PRELOAD": str(FAKETIME)}
    for name, value in settings.items():
        monkeypatch.setitem(commands.EXTRA, name, value)
    out, _ = commands.run("doctor", "--only", "clock", "--runs-dir", tmp_path, expect=2 if level == "fail" else 0)
    assert out.startswith(level) and ("ahead of" if fake[0] == "+" else "behind") in out and "timedatectl" in out


def test_coarse_time_stamps_are_told():
    assert clock.judge("disk", off_s=0.1, tick_s=2.0).level == Level.WARN
    assert clock.judge("disk", off_s=0.1, tick_s=0.004).level == Level.PASS


def test_folders_that_this_user_may_not_write_to_are_skipped_with_the_reason(tmp_path: Path):
    """As another user, since root may write anywhere."""
    script = (
        "import os, sys\nfrom launcher.doctor.disks import names, speed\n"
        "from launcher.doctor.request import Request\nos.setuid(65534)\n"
        "request = Request(runs_dir=sys.argv[1])\n"
        "for check in (speed.check, names.check):\n"
        "    print([f.level + f.text for f in check(request) if f.text.startswith(sys.argv[1])])"
    )
    if subprocess.run([sys.executable, "-c", "import os; os.setuid(65534)"], capture_output=True).returncode:
        pytest.skip("needs root")
    folder = Path("/sys/kernel")
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert done.stdout.count("skipped/sys/kernel (runs): this user may not write there") == 2
