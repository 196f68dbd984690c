"""Moving averages of the weights: their formula at every stage, elastic resumes, evaluation, and what uses them.

Modules: state_shards.py, evaluation.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from branched_runs import train_trunk
from tiny_model import training
from torchrun import torchrun
from workers.average_cases import AT, END, THEN, begin, error, follow
from workers.checkpoint_cases import STREAMS, restore, save
from workers.engine_cases import ALL

import xlpretrain
from xlpretrain.__main__ import main
from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import Checkpoint
from xlpretrain.errors import CheckpointError
from xlpretrain.hub.export import export
from xlpretrain.optim import AdamWConfig
from xlpretrain.run_dir.layout import RunDir


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("averages")
    torchrun("average_cases.py", folder, nproc=2)
    return folder, json.loads((folder / "average.json").read_text())


@pytest.mark.full
@pytest.mark.parametrize("name", THEN)
def test_on_two_ranks_it_equals_its_formula_and_is_evaluated(measured: tuple[Path, dict[str, Any]], name: str):
    found = measured[1][name]
    assert found["counted"] == 3  # of 7 steps one was skipped, and every second update counts
    assert found["error"] < 1e-6
    assert found["resumed"] < 1e-6  # under another engine
    assert found["swapped"] and found["same"]
    assert found["averaged"] != found["loss"]
    assert found["averaged"] == pytest.approx(
        measured[1]["plain fp32"]["averaged"], rel=1e-2 if "bf16" in name else 1e-5
    )


@pytest.mark.full
@pytest.mark.parametrize("name", THEN)
def test_it_goes_on_with_another_number_of_ranks(measured: tuple[Path, dict[str, Any]], group: None, name: str):
    run = begin(ALL["plain fp32"], seed=1)
    assert restore(measured[0] / name, run) is not None
    history = torch.load(measured[0] / name / "history.pt")
    assert error(run, history) < 1e-6
    assert error(run, history + follow(run, AT, END)) < 1e-6


def test_alone_it_equals_its_formula(group: None, tmp_path: Path):
    run = begin(ALL["plain fp32"])
    history = follow(run, 0, AT)
    assert len(history) == 3
    assert error(run, history) < 1e-6
    save(tmp_path, run, AT)
    again = begin(ALL["plain fp32"], seed=1)
    assert restore(tmp_path, again) is not None
    assert error(again, history + follow(again, AT, END)) < 1e-6


def test_a_device_that_decides_on_updates_counts_the_same(group: None):
    run = begin(ALL["plain fp32"])
    run.engine._decides_on_device = True
    assert error(run, follow(run, 0, AT)) < 1e-6


def test_training_is_the_same_in_every_bit(group: None):
    without = training(
        ALL["plain fp32"], num_streams=STREAMS, num_micro_batches=2, optimizer=AdamWConfig(grad_clip=0.5)
    )
    assert begin(ALL["plain fp32"]).steps(0, 4) == without.steps(0, 4)


def test_begun_in_the_middle_it_starts_from_the_weights(group: None, tmp_path: Path):
    without = training(
        ALL["plain fp32"], num_streams=STREAMS, num_micro_batches=2, optimizer=AdamWConfig(grad_clip=0.5)
    )
    without.steps(0, 3)
    save(tmp_path, without, 3)
    run = begin(ALL["plain fp32"], seed=1)
    assert restore(tmp_path, run) is not None
    shards = {(shard.kind, shard.name): shard.tensor for shard in run.engine.state_ranges()}
    assert all(torch.equal(shards["average", name], shards["weight", name]) for name in run.engine.shapes)


def test_a_run_is_evaluated_exported_and_trained_from_by_its_average(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread
    optimizer = {"type": "adamw", "lr": 3e-3, "average": {"decay": 0.8}}
    path = train_trunk(tmp_path, tiny_dataset, optimizer=optimizer, checkpoint={"every_steps": 4, "keep": 4})
    last = commands.read_metrics(path)[-1]
    assert last["valid/loss_average"] != last["valid/loss"]
    assert "valid/lm_accuracy_average" in last
    averaged, trained = (xlpretrain.load(path, weights=weights) for weights in ("average", "trained"))
    assert averaged.evaluate(config=averaged.config.eval).loss == pytest.approx(last["valid/loss_average"], rel=1e-6)
    assert trained.evaluate(config=trained.config.eval).loss == pytest.approx(last["valid/loss"], rel=1e-6)
    export(RunDir(path), tmp_path / "exported", weights="average")
    begun = ["name=begun", f"init_from={path}", "init_weights=average", "max_steps=1", "optimizer.lr=1e-30"]
    assert main([str(path / "config.yaml"), *begun, "optimizer.average=null", "schedule.total_steps=20"]) == 0
    with (
        Checkpoint(path / "checkpoints" / checkpoint_name(8)) as of_run,
        Checkpoint(tmp_path / "runs" / "begun" / "checkpoints" / checkpoint_name(1)) as of_begun,
    ):
        for name, parameter in of_run.manifest.parameters.items():
            size = torch.Size(parameter.shape).numel()
            assert torch.equal(of_begun.read("weight", name, 0, size), of_run.read("average", name, 0, size))
    with pytest.raises(CheckpointError, match="has no moving average"):
        xlpretrain.load(tmp_path / "runs" / "begun", weights="average")
