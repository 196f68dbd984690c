"""Multiple choice: batches, losses, predictions.

Modules: choices.py.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import run
from imported_runs import make_run, make_task_run
from labelled_files import PLAIN

import xlpretrain
from xlpretrain.errors import DataError
from xlpretrain.finetune.results import finetune_config


def _write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def _questions(count: int, *, seed: int) -> list[dict]:
    """The right choice begins with the same word as the context."""
    rng, words, rows = random.Random(seed), ["Bation", "Tring", "Wone"], []
    for _ in range(count):
        answer = rng.randrange(3)
        rows.append({"context": f"{words[answer]} is said", "choices": [f"{w} it is" for w in words], "label": answer})
    return rows


@pytest.mark.parametrize("kind", ["transformer_xl", "xlnet", "albert", "bert"])
def test_choices_compete_with_any_backbone(tmp_path: Path, tiny_dataset: Path, kind: str):
    size = {"max_positions": 128} if kind in ("albert", "bert") else {}
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": kind, **size})
    files = {name: _write(tmp_path / f"{name}.jsonl", _questions(4, seed=1)) for name in ("train", "valid")}
    loaded = xlpretrain.load(make_task_run(source, "choose", files).path, device="cpu")
    task, valid = loaded.task[0], loaded.valid
    samples = task.evaluation_samples(valid, num_tokens=0, num_streams=3, mem_len=0)
    collate = task.collator(loaded.tokenizer, seed=0)
    read = [samples.sample(step=step, stream=stream) for step in range(2) for stream in range(3)]
    assert [s.example.target is None for s in read].count(True) == 2  # past the end
    batch = collate(read)
    assert batch.inputs.tokens.shape[0] == 18 and batch.counts == {"choice": 4}
    mems = loaded.model.backbone.empty_memory(6, 0)
    with torch.no_grad():
        loss, after = loaded.model(batch, mems)
    assert after is mems and loss.outputs.shape == (6, 3)
    chosen = [i for i, sample in enumerate(read) if sample.example.target is not None]
    expected = F.cross_entropy(
        loss.outputs[chosen], torch.tensor([read[i].example.target for i in chosen]), reduction="sum"
    )
    torch.testing.assert_close(loss.sums["choice"], expected)
    probabilities = loaded.predict([(row["context"], row["choices"]) for row in _questions(4, seed=1)])
    numbers = [samples.number(step=step, stream=stream) for step in range(2) for stream in range(3)]
    rows = [numbers.index(number) for number in range(4)]
    np.testing.assert_allclose(probabilities, torch.softmax(loss.outputs[rows].double(), -1), atol=1e-5)


def test_files_with_other_numbers_of_choices_are_refused(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "bert", "max_positions": 128})
    train = _write(tmp_path / "train.jsonl", _questions(4, seed=1))
    valid = _write(tmp_path / "valid.jsonl", [{"choices": ["a", "b"], "label": 0}])
    with pytest.raises(DataError, match=r"valid\.jsonl: the questions have 2 choices, expected 3 as in training"):
        finetune_config(source, task="choose", train=train, valid=valid, name="tuned", runs_dir=tmp_path / "runs")
    valid = _write(tmp_path / "valid.jsonl", [{"choices": ["a", "b", "c"]}])
    with pytest.raises(DataError, match="line 1: the question has no label"):
        finetune_config(source, task="choose", train=train, valid=valid, name="tuned", runs_dir=tmp_path / "runs")


@pytest.mark.full
def test_a_chooser_from_the_command_line(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert", "max_positions": 128})
    files = {
        name: _write(tmp_path / f"{name}.jsonl", _questions(n, seed=n))
        for name, n in {"train": 96, "valid": 40}.items()
    }
    options = ["--train", files["train"], "--valid", files["valid"], "--name", "tuned", "--runs-dir", tmp_path / "runs"]
    recipe = [*PLAIN, "optimizer.lr=0.01", "max_steps=40", "schedule.warmup_steps=5"]
    out, _ = run("finetune", source.path, "--task", "choose", *options, "--nproc", 2, *recipe)
    folder = tmp_path / "runs" / "tuned"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"accuracy {metrics['accuracy']:.4f}, of 40 examples" in out
    _, err = run("predict", folder, "--input", files["valid"], "--to", tmp_path / "said.csv")
    assert f"accuracy {metrics['accuracy']:.4f}" in err
