"""Profiles of a run: the same bits, once, whole or not at all; and the command that shows them.

Modules: names.py, recording.py, profiles.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import commands
import pytest
from callback_runs import completed, make_context
from torch import nn

from launcher.cli.monitor import profiles
from xlpretrain.__main__ import main
from xlpretrain.errors import LaunchError
from xlpretrain.profiling.shares import step_shares
from xlpretrain.profiling.trace import read_trace
from xlpretrain.run_dir import lease
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.train.callbacks.performance.profile import Profile


def write_config(folder: Path, dataset: Path, **changes: object) -> Path:
    return commands.write_config(
        folder / "tiny.yaml",
        dataset,
        max_steps=6,
        schedule={"type": "cosine", "warmup_steps": 1, "total_steps": 6},
        eval={"every_steps": 3, "max_tokens": 500, "seq_len": 1024},
        checkpoint={"every_steps": 2},
        wandb={"mode": "disabled"},
        **changes,
    )


def bits(run: Path) -> dict[int, tuple]:
    """Loss, gradient norm and rate of each step; evaluations depend on where a run ends."""
    return {step: row[:3] for step, row in commands.curve(run).items()}


def test_a_profiled_run_has_the_bits_of_another_and_is_profiled_once(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread
    config = write_config(tmp_path, tiny_dataset, engine={"type": "plain", "precision": "fp32"})
    wanted = ["profile.first_step=2", "profile.num_steps=3"]
    runs = tmp_path / "runs"
    assert main([str(config), "name=usual"]) == 0
    assert main([str(config), "name=profiled", *wanted, "max_steps=5"]) == 0
    run = RunDir(runs / "profiled")
    assert run.profiled() == {2: [0]}
    trace, _ = run.profile_files(2, 0)
    assert f"profile of steps 2 to 4: {trace}" in capsys.readouterr().out
    shares = step_shares(read_trace(trace))
    assert shares.num_steps == 3
    for group in ("products", "attention", "loss", "elementwise", "optimizer", "data", "host"):
        assert shares.seconds[group] > 0, group
    assert shares.seconds["communication"] == 0, "there is one rank"

    trace.unlink()
    assert main([str(config), "name=profiled", *wanted, "max_steps=6"]) == 0
    assert not run.profiled(), "the resumed run has done these steps"
    assert bits(run.path) == bits(runs / "usual")

    with pytest.raises(LaunchError, match="no profile; make one of some steps yet to come"):
        profiles.show(run.path, step=None, rank=None, plot=None)
    assert main([str(config), "name=profiled", "profile.first_step=7", "max_steps=7"]) == 0
    capsys.readouterr()
    profiles.show(run.path, step=7, rank=0, plot=tmp_path / "shares.png")
    shown = capsys.readouterr().out
    assert "step 7" in shown and "whole step" in shown and str(run.profile_files(7, 0)[0]) in shown
    assert (tmp_path / "shares.png").stat().st_size > 1000
    for options, message in (({"step": 6}, "no profile of step 6"), ({"rank": 1}, "rank 1 has no profile")):
        with pytest.raises(LaunchError, match=message):
            profiles.show(run.path, **{"step": None, "rank": None, "plot": None, **options})


def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **section: object) -> tuple[Profile, list[str]]:
    """The callback of steps 3 and 4, in a run folder of its own."""
    printed: list[str] = []
    monkeypatch.chdir(tmp_path)
    context = make_context(print=printed.append, profile={"first_step": 3, "num_steps": 2, **section})
    return Profile(context, nn.Linear(1, 1), fence=lambda: None), printed


def do_steps(callback: Profile, first: int, last: int) -> None:
    for step in range(first, last + 1):
        callback.before_fetch(step - 1)
        callback.after_step(completed(step))


def test_a_profile_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    callback, _ = profile(tmp_path, monkeypatch)
    do_steps(callback, 1, 3)
    callback.close()
    do_steps(callback, 5, 6)
    assert not list(tmp_path.iterdir())


def test_a_rollback_begins_the_profile_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    callback, printed = profile(tmp_path, monkeypatch)
    do_steps(callback, 1, 3)
    callback.after_rollback(None)
    do_steps(callback, 2, 4)
    assert RunDir(tmp_path / "runs" / "run").profiled() == {3: [0]}
    assert len(printed) == 1 and "profile of steps 3 to 4" in printed[0]


def test_an_attempt_that_begins_in_the_middle_profiles_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    callback, _ = profile(tmp_path, monkeypatch)
    do_steps(callback, 4, 6)
    assert RunDir(tmp_path / "runs" / "run").profiled() == {4: [0]}


def test_what_cannot_be_profiled_or_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    callback, printed = profile(tmp_path, monkeypatch, ranks=[0, 2])
    (tmp_path / "runs").write_text("a file where the folder should be")
    do_steps(callback, 3, 4)
    assert "the run has 1 ranks, from 0; no profile of [2]" in printed[0]
    assert "the profile cannot be written" in printed[1] and printed[1].endswith("training continues")
    assert "the run ends at step 100" in profile(tmp_path, monkeypatch, first_step=101)[1][0]


def test_what_a_killed_rank_left_is_removed_by_the_next_attempt(tmp_path: Path):
    run = RunDir(tmp_path)
    run.profiles.mkdir()
    left, kept = run.profiles / ".step-00000003-rank-00001.json.gz.17-0123abcd.tmp", run.profiles / "notes.tmp"
    left.write_text("half")
    kept.write_text("of the user")
    lease.acquire(run.lease, launch_id="", take_over=False)
    assert [path.name for path in run.profiles.iterdir()] == [kept.name]


@pytest.mark.full
@pytest.mark.parametrize(
    "engine",
    [
        {"type": "plain", "precision": "fp32"},
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"type": "plain", "compile": True},
    ],
    ids=["plain", "ZeRO-1", "ZeRO-2", "ZeRO-3", "compiled"],
)
def test_two_ranks_are_profiled_with_every_engine_and_keep_their_bits(engine: dict, tiny_dataset: Path, tmp_path: Path):
    config = write_config(tmp_path, tiny_dataset, engine={**engine, "activation_checkpointing": True})
    commands.run("train", config, "name=usual", "--nproc", 2)
    first = 1 if engine.get("compile") else 4  # the layers are compiled while they are profiled
    commands.run("train", config, "name=profiled", f"profile.first_step={first}", "profile.ranks=[0,1]", "--nproc", 2)
    run = RunDir(tmp_path / "runs" / "profiled")
    assert run.profiled() == {first: [0, 1]}
    for rank in (0, 1):
        shares = step_shares(read_trace(run.profile_files(first, rank)[0]))
        assert shares.num_steps == 3
        groups = ("products", "loss", "elementwise", "optimizer", "communication", "host", "attention")
        assert all(shares.seconds[group] > 0 for group in groups), shares
    if not engine.get("compile"):
        assert commands.curve(run.path) == commands.curve(tmp_path / "runs" / "usual")
    out, _ = commands.run("profile", run.path)
    assert "rank 0" in out and "rank 1" in out
    assert os.fspath(run.profile_files(first, 1)[0]) in out
