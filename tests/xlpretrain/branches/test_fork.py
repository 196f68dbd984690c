"""Forks go on from a checkpoint of their parent, in every bit or as changed. Modules: new_run.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import commands
import pytest
from branched_runs import STEPS, train_trunk
from builds import tree
from make_golden import read_state

from xlpretrain.__main__ import main
from xlpretrain.branches.fork import fork
from xlpretrain.checkpoint.files import checkpoint_name, verify_whole
from xlpretrain.config import run_config
from xlpretrain.config.stages import StageConfig
from xlpretrain.errors import XLPretrainError
from xlpretrain.run_dir.layout import RunDir


def forked(trunk: RunDir, *overrides: str, step: int | None = None, name: str = "child") -> RunDir:
    return fork(trunk, step=step, name=name, overrides=overrides)[0]


def refusal(trunk: RunDir, *overrides: str, step: int | None = 4, name: str = "child") -> str:
    """The error of a fork that must leave nothing behind."""
    before = sorted(trunk.path.parent.rglob("*"))
    with pytest.raises(XLPretrainError) as error:
        forked(trunk, *overrides, step=step, name=name)
    assert sorted(trunk.path.parent.rglob("*")) == before
    return str(error.value)


def resume(run: RunDir, *overrides: str) -> None:
    assert main([str(run.config), *overrides]) == 0


def final_state(run: RunDir, step: int = STEPS[-1]) -> dict:
    return read_state(run.checkpoints / checkpoint_name(step))


@pytest.mark.parametrize("step", [2, 4])
def test_a_fork_without_changes_equals_the_continuation_in_every_bit(trunk: RunDir, step: int):
    child = forked(trunk, step=step)
    shutil.rmtree(trunk.path / "checkpoints" / checkpoint_name(6))  # it cannot be read from there
    resume(child)
    continuation = {at: row for at, row in commands.curve(trunk.path).items() if at > step}
    assert len(continuation) == STEPS[-1] - step
    assert commands.curve(child.path) == continuation
    assert final_state(child) == final_state(trunk)


def test_the_parent_stays_as_it_is_and_may_be_deleted(trunk: RunDir):
    before = tree(trunk.path)
    child = forked(trunk, "checkpoint.keep=1", "checkpoint.keep_best=false", step=4)
    resume(child)
    assert [path.name for path in sorted(child.checkpoints.iterdir())] == [checkpoint_name(4), checkpoint_name(8)]
    assert tree(trunk.path) == before
    shutil.rmtree(trunk.path)
    verify_whole(child.checkpoints / checkpoint_name(4))
    resume(child, "max_steps=9")
    assert child.read_status().step == 9


@pytest.mark.full
def test_a_fork_goes_on_with_other_ranks_and_another_engine(tmp_path: Path, tiny_dataset: Path):
    trunk = RunDir(train_trunk(tmp_path, tiny_dataset, dropout=0.0))  # its masks depend on the number of ranks
    child = forked(trunk, "engine.type=deepspeed", "engine.zero_stage=2", step=4)
    commands.run("resume", child.path, "--nproc", 2)
    continuation = {at: row for at, row in commands.curve(trunk.path).items() if at > 4}
    found = commands.curve(child.path)
    assert found.keys() == continuation.keys()
    for at, (loss, *_) in continuation.items():
        assert found[at][0] == pytest.approx(loss, abs=1e-5)


def test_files_are_shared_by_links_or_copied(trunk: RunDir, monkeypatch: pytest.MonkeyPatch):
    name = Path("checkpoints", checkpoint_name(4), "rank-00000.safetensors")
    linked = forked(trunk, step=4).path / name
    assert linked.stat().st_ino == (trunk.path / name).stat().st_ino

    def refuse(*paths: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    copied = forked(trunk, step=4, name="copied").path / name
    assert copied.stat().st_ino != (trunk.path / name).stat().st_ino
    assert copied.read_bytes() == linked.read_bytes()


def test_a_fork_knows_its_parent_and_what_is_changed(trunk: RunDir):
    child, notes = fork(trunk, step=4, name="child", overrides=["optimizer.lr=0.001", "stop.patience=3"])
    branch = child.read_branch()
    assert branch is not None
    assert (branch.run, branch.id, branch.step) == (str(trunk.path), trunk.read_provenance()["id"], 4)
    assert branch.changed == {"optimizer.lr": [3e-3, 1e-3], "stop.patience": [None, 3]}
    assert branch.place == "trunk, step 4"
    assert "optimizer.lr: 0.003 -> 0.001" in branch.describe()
    assert notes[-1] == "the learning rate of the next step is 0.001; the parent's was 0.003"
    provenance = child.read_provenance()
    assert provenance["id"] != branch.id
    assert provenance["data_sha256"] == trunk.read_provenance()["data_sha256"]
    assert trunk.read_branch() is None
    resume(child)
    assert child.read_branch() == branch  # also after an attempt
    grandchild = forked(child, step=6, name="grandchild")
    assert grandchild.read_branch().place == "child, step 6"


def test_the_newest_checkpoint_is_the_default(trunk: RunDir):
    assert forked(trunk, "max_steps=20").read_branch().step == 8


def test_the_best_checkpoint_comes_along(trunk: RunDir):
    state = json.loads((trunk.checkpoints / checkpoint_name(6) / "manifest.json").read_text())["state"]
    assert state["callbacks"]["best_checkpoint"]["best_step"] == 4
    assert sorted(path.name for path in forked(trunk, step=6).checkpoints.iterdir()) == [
        checkpoint_name(4),
        checkpoint_name(6),
    ]


def test_a_cooldown_has_the_rates_of_the_trunk_until_it_decays(trunk: RunDir):
    child = forked(trunk, "max_steps=9", "schedule.decay_steps=4", "schedule.decay_shape=cosine", step=4)
    schedule, of_trunk = (run_config.load(run.config).schedule for run in (child, trunk))
    assert schedule.total_steps == 9  # the end moves with the run's
    assert [schedule.factor(step) for step in range(6)] == [of_trunk.factor(step) for step in range(6)]
    assert schedule.factor(6) < 1
    resume(child)
    rates = {at: row[2] for at, row in commands.curve(child.path).items()}
    assert rates[5] == rates[6] == 3e-3
    assert rates[9] == pytest.approx(3e-3 * schedule.factor(8))
    kept = forked(trunk, "max_steps=9", "schedule.total_steps=8", step=4, name="kept")
    assert run_config.load(kept.config).schedule.total_steps == 8


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.d_model=64", "model.d_model"),
        ("model.mem_len=8", "model.mem_len"),
        ("objective.type=masked_lm", "objective.type"),
        ("objective.seq_len=0", "objective.seq_len"),
        ("stages=[{until: {step: 6}}, {}]", "a fork keeps its parent's"),
        ("optimizer.type=lamb", "optimizer.type"),
        ("global_batch_size=0", "global_batch_size"),
        ("seed=5", "seed"),
        ("name=other", "name"),
        ("runs_dir=elsewhere", "runs_dir"),
        ("schedule.decay_steps=7", "schedule.decay_steps"),
        ("max_steps=4", "nothing left to train"),
        ("modle.d_model=64", "modle"),
    ],
)
def test_changes_that_are_not_allowed_are_named(trunk: RunDir, override: str, key: str):
    assert key in refusal(trunk, override)


def test_what_a_stage_may_change_begins_a_stage(trunk: RunDir):
    child = forked(trunk, "global_batch_size=4", step=4)
    config = run_config.load(child.config)
    first, last = config.stages
    assert first.until is not None and first.until.step == 4 and last == StageConfig()
    assert (first.global_batch_size, config.global_batch_size) == (8, 4) and first.objective["seq_len"] == 16
    resume(child)
    assert child.read_status().step == 8
    told = refusal(child, "objective.seq_len=8", step=2, name="grandchild")
    assert "no checkpoint of step 2" in told
    later = run_config.load(forked(child, "objective.seq_len=8", step=6, name="grandchild").config)
    assert [stage.until.step for stage in later.stages[:-1] if stage.until is not None] == [4, 6]
    assert [stage.global_batch_size for stage in later.stages] == [8, 4, None]
    again = run_config.load(forked(child, "objective.seq_len=8", step=4, name="beside").config)
    assert [stage.global_batch_size for stage in again.stages] == [8, None], "its second stage has trained nothing"


def test_another_tokenizer_is_refused(trunk: RunDir, tiny_dataset: Path, tmp_path: Path):
    other = shutil.copytree(tiny_dataset, tmp_path / "other")
    index = other / "train" / "index.json"
    described = json.loads(index.read_text())
    index.write_text(json.dumps({**described, "tokenizer_sha256": "0" * 64}))
    assert "tokenizer" in refusal(trunk, f"data.train={other / 'train'}")


def test_checkpoints_that_cannot_be_used_are_named(trunk: RunDir, tmp_path: Path):
    assert "no checkpoint of step 5; there are those of 2, 4, 6, 8" in refusal(trunk, step=5)
    assert "already exists" in refusal(trunk, name="trunk")
    file = trunk.checkpoints / checkpoint_name(4) / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    error = refusal(trunk)
    assert "is damaged" in error
    assert "--step: 8, 6, 2" in error
    (trunk.checkpoints / checkpoint_name(6) / "manifest.json").unlink()
    assert "is damaged (no manifest)" in refusal(trunk, step=6)
    shutil.rmtree(trunk.checkpoints)
    assert "has no checkpoints" in refusal(trunk, step=None)


def test_parameters_may_be_frozen_but_have_no_state_to_go_on_with_afterwards(trunk: RunDir):
    child = forked(trunk, "optimizer.frozen=[backbone.embedding.*]", step=4)
    resume(child)
    error = refusal(child, "optimizer.frozen=[]", step=6, name="grandchild")
    assert "has no exp_avg of backbone.embedding." in error
    assert forked(child, step=6, name="grandchild").read_branch().changed == {}
