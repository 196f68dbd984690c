"""A run with stages equals the first stage as a run and the second as its fork, in every bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import commands
import plugins
import pytest
import torch
from branched_runs import train_trunk

from xlpretrain.__main__ import main
from xlpretrain.branches.fork import fork
from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import Checkpoint
from xlpretrain.config.stages import stage_objective
from xlpretrain.evaluation.report import print_report
from xlpretrain.hub.export import export
from xlpretrain.run_dir.layout import RunDir

BERT = {"type": "bert", "num_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64, "max_positions": 64}
SHORT_TXL = {"objective": {"type": "causal_lm", "seq_len": 16}, "global_batch_size": 4, "micro_batch_size": 4}
LONG_TXL = {"objective": {"type": "causal_lm", "seq_len": 24}, "global_batch_size": 6, "micro_batch_size": 4}
SHORT_BERT = {"objective": {"type": "masked_lm", "seq_len": 32, "mask_rate": 0.15}, "global_batch_size": 6}
SHORT_BERT["micro_batch_size"] = 6
LONG_BERT = {"objective": {"type": "masked_lm", "seq_len": 64, "mask_rate": 0.3}, "global_batch_size": 4}
LONG_BERT["micro_batch_size"] = 2
XLNET = {"type": "xlnet", "num_layers": 1, "d_model": 32, "num_heads": 2, "d_ff": 64, "mem_len": 16}


def mix(seq_len: int, mask_rate: float) -> dict[str, Any]:
    half = seq_len // 2
    permuted = {"type": "permutation_lm", "reuse_len": half, "perm_size": half, "num_predict": half // 2}
    parts = [
        {"share": 0.25, "objective": permuted},
        {"share": 0.25, "objective": {"type": "masked_lm", "sentence_task": "none", "mask_rate": mask_rate}},
        {"name": "causal", "share": 0.5, "objective": {"type": "causal_lm"}},
    ]
    return {"type": "mixed", "seq_len": seq_len, "parts": parts}


SHORT_MIX = {"objective": mix(16, 0.3), "global_batch_size": 8, "micro_batch_size": 2}
LONG_MIX = {"objective": mix(32, 0.15), "global_batch_size": 8, "micro_batch_size": 1}
RECIPES = {
    "transformer_xl": ({}, SHORT_TXL, LONG_TXL),
    "transformer_xl, fewer streams": ({}, LONG_TXL, SHORT_TXL),
    "bert": ({"model": BERT}, SHORT_BERT, LONG_BERT),
    "mix": ({"model": XLNET}, SHORT_MIX, LONG_MIX),
}
BOUNDARY, END = 4, 8


def stage_of(keys: dict[str, Any]) -> dict[str, Any]:
    return {**keys, "objective": stage_objective(keys["objective"])}


def staged(folder: Path, dataset: Path, recipe: str, **changes: Any) -> Path:
    """Train both stages in one run of 8 steps."""
    common, first, second = RECIPES[recipe]
    stages = [{"until": {"step": BOUNDARY}, **stage_of(first)}, {}]
    folder.mkdir(exist_ok=True)
    return train_trunk(folder, dataset, **common, **second, stages=stages, **changes)


def saved(run: Path, step: int = END, groups: Sequence[range] = ()) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint, by key; the memories of the streams that the last stage reads, by group."""
    with Checkpoint(run / "checkpoints" / checkpoint_name(step)) as checkpoint:
        found = {
            f"{kind}|{name}": checkpoint.read(kind, name, 0, torch.Size(parameter.shape).numel())
            for name, parameter in checkpoint.manifest.parameters.items()
            for kind in parameter.kinds
        }
        last = max(stop for _, stop, _ in checkpoint.manifest.memory)
        streams = groups or [range(last)]
        return found | {
            "memory" if not each.start else f"memory {each}": checkpoint.read_memory(each) for each in streams
        }


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


READS = """
from typing import Literal

import torch

from xlpretrain.train.callbacks.base import Callback, CallbackConfig, CallbackContext, RollBack


class ReadsConfig(CallbackConfig):
    type: Literal["reads"] = "reads"
    roll_back_at: int = 0

    def build(self, context: CallbackContext):
        return Reads(self, context)


class Reads(Callback):
    def __init__(self, config, context):
        self.context, self.at = context, config.roll_back_at
        self.counts = torch.zeros(len(context.streams), dtype=torch.int64)

    def after_forward(self, micro_batch, loss):
        for stream in micro_batch.streams:
            self.counts[self.context.streams.index(stream)] += 1

    def agreed(self, step, sums):
        at, self.at = self.at, self.at if step != self.at else 0
        return RollBack("the test says so", skip_before=3) if step == at and at else None

    def stream_state(self):
        return self.counts

    def load_stream_state(self, state):
        self.counts = state.clone()
"""


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["transformer_xl", "transformer_xl, fewer streams"])
def test_states_of_streams_and_a_rollback_cross_the_boundary(
    recipe: str, tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.install(tmp_path, "reads", {"reads.py": READS}, {"callback.reads": "reads:ReadsConfig"})
    with plugins.on_path(tmp_path, monkeypatch):
        callbacks = [{"type": "reads", "roll_back_at": 6}]
        whole = staged(tmp_path, tiny_dataset, recipe, callbacks=callbacks, checkpoint={"every_steps": 2, "keep": 9})
        printed = capsys.readouterr().out
        assert "step 6: the test says so; rolled back to step 2, skipping the data of steps 2 to 5" in printed
        assert printed.count("step 4: next stage: ") == 2
        sizes = [keys["global_batch_size"] for keys in RECIPES[recipe][1:]]
        with Checkpoint(whole / "checkpoints" / checkpoint_name(END)) as checkpoint:
            counts = checkpoint.read_stream_state("reads", range(max(sizes)))
        assert counts.tolist() == [4 * sum(stream < size for size in sizes) for stream in range(max(sizes))]
        child, _ = fork(RunDir(whole), step=4, name="child", overrides=["callbacks=[{type: reads}]"])
        assert main([str(child.config)]) == 0
        expected = {at: row for at, row in commands.curve(whole).items() if at > 4}
        assert commands.curve(child.path) == expected
        assert_equal(saved(child.path), saved(whole))


@pytest.fixture(autouse=True)
def one_thread_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")


@pytest.mark.parametrize(
    "recipe", ["transformer_xl", "mix", *(pytest.param(name, marks=pytest.mark.full) for name in list(RECIPES)[1:-1])]
)
def test_two_stages_in_one_run_equal_a_run_and_its_fork_in_every_bit(
    recipe: str, tmp_path: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common, first, second = RECIPES[recipe]
    whole = staged(tmp_path / "whole", tiny_dataset, recipe)
    printed = capsys.readouterr().out
    said = "micro_batch_size: 2 -> 1; objective.seq_len: 16 -> 32; " if recipe == "mix" else "global_batch_size: "
    assert f"step 4: next stage: {said}" in printed
    assert printed.count("next stage") == 1
    short = {
        "max_steps": BOUNDARY,
        "schedule": {"type": "wsd", "warmup_steps": 2, "decay_steps": 1, "total_steps": END},
    }
    (tmp_path / "alone").mkdir()
    alone = RunDir(train_trunk(tmp_path / "alone", tiny_dataset, **common, **first, **short))
    of_whole = commands.curve(whole)
    for at, (loss, norm, lr, _, tokens) in commands.curve(alone.path).items():  # evaluations are of the last stage
        assert of_whole[at][:3] == (loss, norm, lr) and of_whole[at][4] == tokens
    overrides = [f"objective={json.dumps(second['objective'])}"]
    overrides += [f"{key}={second[key]}" for key in ("global_batch_size", "micro_batch_size")]
    child, _ = fork(alone, name="child", overrides=[*overrides, f"max_steps={END}", f"schedule.total_steps={END}"])
    assert main([str(child.config)]) == 0
    assert commands.curve(child.path) == {at: row for at, row in of_whole.items() if at > BOUNDARY}
    groups = [range(2), range(2, 4), range(4, 8)] if recipe == "mix" else []
    assert_equal(saved(child.path, groups=groups), saved(whole, groups=groups))


@pytest.mark.full
@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_crosses_its_boundary_on_other_numbers_of_ranks(
    engine: str, step: int, tmp_path: Path, tiny_dataset: Path
) -> None:
    whole = staged(tmp_path, tiny_dataset, "transformer_xl", dropout=0.0)  # its masks depend on the number of ranks
    overrides = ["engine.type=deepspeed", "engine.zero_stage=2"] if engine == "deepspeed" else []
    child, _ = fork(RunDir(whole), step=step, name="child", overrides=overrides)
    commands.run("resume", child.path, "--nproc", 2)
    expected, found = ({at: row for at, row in commands.curve(run).items() if at > step} for run in (whole, child.path))
    assert found.keys() == expected.keys()
    for at, (loss, *_, tokens) in expected.items():
        assert found[at][0] == pytest.approx(loss, abs=1e-5) and found[at][-1] == tokens
    one, two = saved(whole)["memory"], saved(child.path)["memory"]
    assert one.shape[1] == LONG_TXL["global_batch_size"]
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_goes_on_before_at_and_after_a_boundary_in_every_bit(
    step: int, tmp_path: Path, tiny_dataset: Path
) -> None:
    whole = staged(tmp_path, tiny_dataset, "transformer_xl")
    expected = saved(whole)
    for path in (whole / "checkpoints").iterdir():
        if path.name > checkpoint_name(step):
            shutil.rmtree(path)
    before = commands.curve(whole)
    assert main([str(whole / "config.yaml")]) == 0
    assert commands.curve(whole) == before
    assert_equal(saved(whole), expected)


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["transformer_xl, fewer streams", "mix"])
def test_memories_on_the_host_cross_the_boundary_in_every_bit(
    recipe: str, tmp_path: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = {"type": "plain", "precision": "fp32"}
    whole = staged(tmp_path / "device", tiny_dataset, recipe, engine=engine)
    host = staged(tmp_path / "host", tiny_dataset, recipe, engine={**engine, "memory_device": "host"})
    assert commands.curve(host) == commands.curve(whole)
    groups = [range(2), range(2, 4), range(4, 8)] if recipe == "mix" else []
    assert_equal(saved(host, groups=groups), saved(whole, groups=groups))
    capsys.readouterr()
    print_report(RunDir(whole))
    tokens = BOUNDARY * 6 * 24 + (END - BOUNDARY) * 4 * 16 if recipe != "mix" else 4 * 6 * (16 + 32) + 4 * 2 * (8 + 16)
    assert commands.read_metrics(whole)[-1]["tokens"] == tokens
    assert f"{tokens:,} tokens trained on" in capsys.readouterr().out
    export(RunDir(whole), tmp_path / "exported", part="causal" if recipe == "mix" else None)
    assert f"of which the run read {tokens:,} tokens" in (tmp_path / "exported" / "README.md").read_text()


@pytest.mark.full
def test_killed_before_at_and_after_boundaries_it_resumes_in_every_bit(tmp_path: Path, tiny_dataset: Path) -> None:
    ramp = {"global_batch_size": {"start": 4, "stop": 8, "multiple_of": 2}}
    stages = [
        {"until": {"fraction": 0.5}, "objective": {"seq_len": 8}, "global_batch_size": 8},
        {"until": {"step": 50}, "ramp": ramp},
        {},
    ]
    config = commands.write_config(tmp_path / "config.yaml", tiny_dataset, stages=stages)
    commands.run("train", config, "name=whole", f"runs_dir={tmp_path}")
    for step in (28, 30, 34):
        process = commands.start("train", config, "name=killed", f"runs_dir={tmp_path}")
        commands.wait_for_step(tmp_path / "killed", step, process)
        commands.kill_all(process)
    commands.run("train", config, "name=killed", f"runs_dir={tmp_path}")
    assert commands.curve(tmp_path / "killed") == commands.curve(tmp_path / "whole")
