"""A run that keeps a moving average of its weights, and what uses it. Modules: evaluation.py."""

from __future__ import annotations

import json
from pathlib import Path

import commands
import pytest
import torch
from branched_runs import train_trunk

import xlpretrain
from xlpretrain.__main__ import main
from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import Checkpoint
from xlpretrain.errors import CheckpointError, ConfigError
from xlpretrain.hub.export import export
from xlpretrain.run_dir.layout import RunDir


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
    (tmp_path / "text.txt").write_text("a b c d e f\n")
    out, _ = commands.run("score", path, "--input", tmp_path / "text.txt", "--weights", "average")
    (expected,) = xlpretrain.load(path, weights="average", precision="fp32").log_likelihoods(["a b c d e f"])
    assert json.loads(out.splitlines()[0])["log_likelihood"] == pytest.approx(expected.nats, rel=1e-5)
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
    with pytest.raises(ConfigError, match="weights must be trained or average, got 'mean'"):
        xlpretrain.load(path, weights="mean")
