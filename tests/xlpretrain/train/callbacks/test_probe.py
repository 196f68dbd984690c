"""A short fine-tune while a model trains: its accuracy is logged, and the run does not feel it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import read_metrics, refused, run, write_config
from labelled_files import _files


@pytest.mark.full
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({"type": "plain", "precision": "fp32"}, id="plain"),
        pytest.param({"type": "deepspeed", "zero_stage": 3, "precision": "bf16"}, id="zero-3"),
    ],
)
def test_a_run_with_probes_has_every_bit_of_one_without(tmp_path: Path, tiny_dataset: Path, engine: dict[str, object]):
    files = {name: str(path) for name, path in _files(tmp_path).items()}
    evals = {"every_steps": 10, "max_tokens": 2000}
    losses = {}
    for name, probe in (("without", None), ("with", {**files, "every_steps": 10, "steps": 6})):
        config = write_config(
            tmp_path / f"{name}.yaml",
            tiny_dataset,
            name=name,
            engine=engine,
            max_steps=20,
            eval={**evals, "probe": probe},
            wandb={"mode": "disabled"},
        )
        run("train", config, "--nproc", 2)
        samples = read_metrics(tmp_path / "runs" / name)
        keys = ("train/loss", "train/grad_norm", "valid/loss")
        losses[name] = [tuple(sample.get(key) for key in keys) for sample in samples]
        probed = {
            sample["step"]: sample["valid/probe_accuracy"] for sample in samples if "valid/probe_accuracy" in sample
        }
        assert set(probed) == (set() if probe is None else {10, 20})
        assert all(0 < accuracy < 1 for accuracy in probed.values())
    assert losses["with"] == losses["without"]


def test_what_is_wrong_with_a_probe_is_said_before_the_start(tmp_path: Path, tiny_dataset: Path):
    files = {name: str(path) for name, path in _files(tmp_path).items()}
    probe = {**files, "label": "mark"}
    config = write_config(tmp_path / "bad.yaml", tiny_dataset, name="bad", eval={"probe": probe, "max_tokens": 2000})
    assert "no column 'mark'; the columns are: text, label" in refused("train", config)
    assert not (tmp_path / "runs" / "bad").exists()
