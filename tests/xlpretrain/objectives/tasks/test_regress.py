"""Regression: targets, metrics and predictions.

Modules: summary.py, lay_out.py, config.py (data/examples).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from imported_runs import make_run
from labelled_files import PLAIN, _write
from scipy.stats import pearsonr, spearmanr

import xlpretrain
from xlpretrain.data.examples.labelled import LabelledDataset
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import DataError
from xlpretrain.finetune.results import finetune_config
from xlpretrain.objectives.tasks.regress import Regression

TASK = Regression(seq_len=16, layout="cls_first")


def _dataset(path: Path, tokenizer: Path, targets: list[object]) -> LabelledDataset:
    _write(path, [(f"text {i}", str(target)) for i, target in enumerate(targets)], ("text", "label"))
    return LabelledDataset.open(path, load_tokenizer(tokenizer), text=("text",), label="label")


@pytest.mark.parametrize("num_cases", [50, pytest.param(1000, marks=pytest.mark.full)])
def test_metrics_are_those_of_scipy(tmp_path: Path, tiny_tokenizer: Path, num_cases: int):
    rng = np.random.default_rng(0)
    for case in range(num_cases):
        number = int(rng.integers(3, 30))
        targets = np.round(rng.normal(size=number), 1 if case % 2 else 6)  # with ties and without
        found = list(targets + np.round(rng.normal(size=number), case % 3))
        data = _dataset(tmp_path / "data.csv", tiny_tokenizer, list(targets))
        assert TASK.metrics(data, found) == {
            "pearson": pytest.approx(pearsonr(targets, found).statistic, abs=1e-12),
            "spearman": pytest.approx(spearmanr(targets, found).statistic, abs=1e-12),
        }
    constant = _dataset(tmp_path / "data.csv", tiny_tokenizer, [1, 1, 1])
    assert TASK.metrics(constant, [1.0, 2.0, 3.0]) == {"pearson": None, "spearman": None}


@pytest.mark.parametrize("target", ["high", "inf", "1,5"])
def test_a_target_that_is_no_number_is_refused(tmp_path: Path, tiny_tokenizer: Path, target: str):
    data = _dataset(tmp_path / "data.csv", tiny_tokenizer, [1, target])
    with pytest.raises(DataError, match=f"line 3: the label must be a finite number, got '{target}'"):
        TASK.check(data)


def test_the_loss_is_the_squared_error(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"})
    rows = [(f"text {i}", str(i)) for i in range(5)]
    files = {name: _write(tmp_path / f"{name}.csv", rows, ("text", "label")) for name in ("train", "valid")}
    config = finetune_config(source, task="regress", **files, name="tuned", runs_dir=tmp_path / "runs")
    data = config.data.open()
    torch.manual_seed(0)
    model = config.build_model(data.tokenizer.vocabulary.size).eval()
    samples = config.objective.evaluation_samples(data.valid, num_tokens=0, num_streams=5, mem_len=0)
    batch = config.objective.collator(data.tokenizer, seed=0)([samples.sample(step=0, stream=i) for i in range(5)])
    assert config.objective.initial == model.head.classifier.bias.item() == 2.0  # the mean of the targets
    with torch.no_grad():
        loss, _ = model(batch, model.backbone.empty_memory(5, 0))
    expected = sum((float(loss.outputs[i, 0]) - i) ** 2 for i in range(5))
    assert float(loss.sums["number"]) == pytest.approx(expected, rel=1e-5)


def test_a_regression_from_the_command_line(tmp_path: Path, tiny_dataset: Path):
    """The number of a text is told by its first word."""
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"})
    rng = np.random.default_rng(0)
    words = {"Bation": 0.0, "Tring": 2.5, "Wone": 5.0}
    files = {}
    for name, size in {"train": 96, "valid": 40}.items():
        chosen = rng.choice(list(words), size)
        rows = [(f"{word} is the word", str(words[word])) for word in chosen]
        files[name] = _write(tmp_path / f"{name}.csv", rows, ("text", "label"))
    options = ["--train", files["train"], "--valid", files["valid"], "--name", "tuned", "--runs-dir", tmp_path / "runs"]
    recipe = [*PLAIN, "optimizer.lr=0.01", "max_steps=60", "schedule.warmup_steps=5"]
    out, _ = run("finetune", source.path, "--task", "regress", *options, "--nproc", 1, *recipe)
    folder = tmp_path / "runs" / "tuned"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"pearson {metrics['pearson']:.4f}, spearman" in out and metrics["pearson"] > 0.5
    found = xlpretrain.load(folder, device="cpu").predict(["Bation is the word", "Wone is the word"])
    assert found[0] < found[1]
    printed, err = run("predict", folder, "--input", files["valid"])
    assert len(printed.splitlines()) == 40 and f"pearson {metrics['pearson']:.4f}" in err
