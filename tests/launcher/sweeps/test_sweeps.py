"""Sweeps on this machine. Modules: local.py, variants.py."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import commands
import pytest

from xlpretrain.errors import STOPPED_EARLY
from xlpretrain.run_dir.layout import RunDir

PLAIN = {"engine": {"type": "plain"}, "max_steps": 6, "checkpoint": {"every_steps": 3}, "eval": {"every_steps": 3}}


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
