"""Sweeps on this machine, and the processes that run them. Modules: local.py, variants.py, pool.py."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import commands
import pytest

from launcher import pool
from launcher.pool import Command, Pool, Slot, divide_machine
from xlpretrain.errors import STOPPED_EARLY, ConfigError
from xlpretrain.run_dir.layout import RunDir

PLAIN = {"engine": {"type": "plain"}, "max_steps": 6, "checkpoint": {"every_steps": 3}, "eval": {"every_steps": 3}}


def python(name: str, code: str, log: Path | None = None) -> Command:
    """A command that runs some code."""
    return Command(name, [sys.executable, "-c", code], log)


def test_gpus_are_divided_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "visible_gpus", lambda: list("01234567"))
    assert divide_machine(1) == [Slot()]
    assert [slot.gpus for slot in divide_machine(3)] == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert [slot.gpus for slot in divide_machine(2, num_processes=1)] == [["0"], ["1"]]
    with pytest.raises(ConfigError, match="--jobs 9: 9 times 1 processes need 9 GPUs, not 8"):
        divide_machine(9)


def test_cores_are_divided_evenly_where_they_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "visible_gpus", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5, 8, 9})
    assert [slot.cores for slot in divide_machine(2)] == [[3, 4], [5, 8]]
    assert divide_machine(6) == [Slot()] * 6


def test_a_slot_runs_its_commands_one_after_another_on_its_devices(tmp_path: Path) -> None:
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], len(os.sched_getaffinity(0)), flush=True); exit({})"
    names = {str(number): tmp_path / "logs" / str(number) for number in range(3)}
    slot = Slot(gpus=["4", "6"], cores=[min(os.sched_getaffinity(0))])
    events: list[tuple[str, str, int | None]] = []
    found = Pool([slot], lambda event, command, code, _: events.append((event, command.name, code))).run(
        [python(name, "import time; time.sleep(0.2)\n" + code.format(name), log) for name, log in names.items()]
    )
    assert found == {"0": "finished", "1": "failed", "2": "failed"}
    assert [event[:2] for event in events[::2]] == [("started", name) for name in names]
    assert [event[2] for event in events[1::2]] == [0, 1, 2]
    assert {log.read_text() for log in names.values()} == {"4,6 1\n"}


def test_a_signal_stops_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import signal, pathlib, time\nsignal.signal(signal.SIGTERM, lambda *_: exit(75))\n"
        f"pathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)"
    )

    def interrupt() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    running = Pool([Slot()], lambda *_: None)
    assert running.run([python("first", code), python("second", code)]) == {"first": "stopped"}
    assert running.stopped_by == signal.SIGTERM
    thread.join()


def test_problems_of_all_runs_are_one_report(tmp_path: Path, tiny_dataset: Path) -> None:
    config = commands.write_config(tmp_path / "base.yaml", tiny_dataset, **PLAIN, name="base")
    said = commands.refused("train", config, "--sweep", "global_batch_size=1,2,8", "--nproc", 4, "--jobs", 2)
    assert "base-global_batch_size1" in said and "base-global_batch_size2" in said
    assert "base-global_batch_size8" not in said
    assert not (tmp_path / "runs").exists()
    assert "--sweep" in commands.refused("train", config, "--jobs", 2)


@pytest.mark.full
def test_a_cut_sweep_is_continued_and_ends_with_a_table_and_a_plot(tmp_path: Path, tiny_dataset: Path) -> None:
    config = commands.write_config(tmp_path / "base.yaml", tiny_dataset, **PLAIN, name="base")
    command = ("train", config, "--sweep", "optimizer.lr=1e-3,3e-3", "--sweep", "seed=1,2", "--nproc", 1)
    process = commands.start(*command)
    commands.read_until(process, "[1/4] base-lr1e-3-seed1: finished")
    process.send_signal(signal.SIGINT)
    _, err = commands.finish(process, expect=STOPPED_EARLY)
    assert "runs are left; rerun the command to continue" in err

    out, _ = commands.run(*command, "--jobs", 2)
    runs = [tmp_path / "runs" / f"base-lr{lr}-seed{seed}" for lr in ("1e-3", "3e-3") for seed in (1, 2)]
    for run in runs:
        status = RunDir(run).read_status()
        assert status is not None and status.step == 6
        assert sum(run.name in line and "6/6" in line for line in out.splitlines()) == 1
    assert "base-lr1e-3-seed1: finished" not in out, "it was finished before"
    assert (tmp_path / "runs/.sweeps/base-lr3e-3-seed2.log").exists()
    assert (tmp_path / "runs/base-sweep.png").stat().st_size > 10_000


@pytest.mark.full
def test_a_run_that_fails_does_not_keep_the_others_from_training(tmp_path: Path, tiny_dataset: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "damaged")
    for shard in (tmp_path / "damaged/train").glob("*.tar"):
        shard.write_bytes(b"\0" * shard.stat().st_size)
    config = commands.write_config(tmp_path / "base.yaml", tiny_dataset, **PLAIN, name="base")
    corpora = f"data.train={tmp_path}/damaged/train,{tiny_dataset}/train"
    out, err = commands.run("train", config, "--sweep", corpora, "--nproc", 1, "--jobs", 2, expect=1)
    assert "1 of 2 runs failed" in err
    failed = next(line for line in out.splitlines() if "failed after" in line)
    assert "damaged" in failed and "exit code" in failed
    assert any("6/6" in line for line in out.splitlines())
