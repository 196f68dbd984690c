"""Hangs, zombies, crashes and torture: whole runs that somebody interferes with."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import psutil
import pytest
import torture
from torchrun import WORKERS

from xlpretrain.errors import FENCED

pytestmark = pytest.mark.full
TIMEOUT_S = 15


@pytest.fixture(scope="module")
def config(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.write_config(
        tmp_path_factory.mktemp("survival") / "tiny.yaml",
        tiny_dataset,
        engine={"type": "plain", "precision": "fp32"},
        wandb={"mode": "disabled"},
    )


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> dict[int, tuple]:
    commands.run("train", config, "name=undisturbed", "--nproc", 2)
    return commands.curve(config.parent / "runs" / "undisturbed")


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file with its time of change and its content, and every folder; but for logs, to which anyone adds."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else (0, b"")
        for path in folder.rglob("*")
        if path.parent != folder / "logs"
    }


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The launcher, and its ranks in their order."""
    ranks = [p for p in psutil.Process(process.pid).children() if "xlpretrain" in p.cmdline()]
    return [psutil.Process(process.pid), *sorted(ranks, key=lambda rank: int(rank.environ()["RANK"]))]


def test_a_rank_that_hangs_ends_the_start_with_stacks_and_the_next_goes_on(config: Path, undisturbed: dict[int, tuple]):
    folder = config.parent / "runs" / "hangs"
    process = commands.start(
        "train", config, "name=hangs", f"watchdog.timeout_s={TIMEOUT_S}", "--nproc", 2, "--max-restarts", 2
    )
    commands.wait_for_step(folder, 25, process)
    _, _, stopped = family(process)
    stopped.suspend()
    began = time.monotonic()
    while not (folder / "lease" / "00000002").exists():
        assert time.monotonic() < began + TIMEOUT_S + 60, "the run was not started again in time"
        time.sleep(0.1)
    print(f"started again {time.monotonic() - began:.1f} s after a rank was stopped")
    _, told = commands.finish(process, expect=0)
    assert f"rank 0 exits: no progress for {TIMEOUT_S} s" in told and "restarting (1 restarts left)" in told
    assert commands.curve(folder) == undisturbed
    stacks = folder / "logs" / "hang-00000001-rank-00000.txt"
    assert [path.name for path in folder.glob("logs/hang-*")] == [stacks.name], "the stopped rank could leave none"
    assert "loop.py" in stacks.read_text()


def test_a_run_that_was_stopped_as_a_whole_and_replaced_writes_nothing_when_it_wakes(
    config: Path, undisturbed: dict[int, tuple]
):
    folder = config.parent / "runs" / "zombie"
    process = commands.start("train", config, "name=zombie", "--nproc", 2, "--max-restarts", 2)
    commands.wait_for_step(folder, 25, process)
    launcher, *ranks = family(process)
    for member in (launcher, *ranks):
        member.suspend()
    told = commands.refused("resume", folder, "--nproc", 2)
    assert f"is in use on {os.uname().nodename} (process {ranks[0].pid}, heartbeat " in told
    assert "--force-takeover" in told
    commands.run("resume", folder, "--nproc", 2, "--force-takeover")
    assert commands.curve(folder) == undisturbed
    before = snapshot(folder)
    for member in (launcher, *ranks):
        member.resume()
    woken = time.monotonic()
    _, told = commands.finish(process, expect=FENCED, timeout_s=20)
    print(f"ended {time.monotonic() - woken:.1f} s after it woke")
    assert "another attempt has taken over the run" in told
    assert "restarting" not in told
    assert snapshot(folder) == before


def test_stopped_between_the_last_look_and_the_rename_it_commits_nothing(config: Path):
    folder = config.parent / "runs" / "rename"
    worker = [sys.executable, WORKERS / "stopped_at_the_rename.py", config, "name=rename"]
    one_thread = {**commands.environment(), "LOCAL_WORLD_SIZE": "64"}
    process = subprocess.Popen(worker, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    (temporary,) = folder.glob("checkpoints/*")
    assert temporary.name.startswith(".tmp-1-step-00000020")
    commands.run("resume", folder, "--nproc", 1, "--force-takeover")
    before = snapshot(folder)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == FENCED, told
    assert snapshot(folder) == before
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == ["step-00000040", "step-00000060"]


def test_two_crashes_without_a_new_checkpoint_are_enough(config: Path):
    folder = config.parent / "runs" / "in-vain"
    process = commands.start(
        "train", config, "name=in-vain", "checkpoint.every_steps=1000", "--nproc", 2, "--max-restarts", 5
    )
    for number in (1, 2):
        while not (folder / "lease" / f"{number:08d}").exists():
            time.sleep(0.05)
        commands.wait_for_step(folder, 3, process)
        random.choice(family(process)[1:]).kill()
    _, told = commands.finish(process, expect=1, timeout_s=60)
    assert "restarting (4 restarts left)" in told
    assert "was killed by SIGKILL" in told and "2 consecutive attempts wrote no new checkpoint" in told
    assert "2 consecutive attempts wrote no new checkpoint" in commands.run("status", folder)[0]
    assert (folder / "logs" / "job.log").read_text().count("the run crashed after step") == 2
    assert "step  2/60" in (folder / "logs" / "rank-00000.log").read_text()  # that of step 3 may be cut off by the kill


@pytest.mark.parametrize("engine", torture.ENGINES)
def test_killed_again_and_again_it_loses_nothing(
    tiny_dataset: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(commands.EXTRA, "PYTHONPATH", "")  # set by the torture, and reset afterwards
    tortured = torture.torture(torture.write_config(tmp_path, tiny_dataset, engine), kills=6, seed=5)
    print(torture.report(tortured))
