"""Weights of classes: those of scikit-learn, in the loss of torch, over micro-batches and ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from imported_runs import make_run
from labelled_files import _write
from sklearn.utils.class_weight import compute_class_weight

from xlpretrain.data.samples import Sample
from xlpretrain.engine.base import LossTermScales
from xlpretrain.errors import ConfigError
from xlpretrain.finetune.results import finetune_config
from xlpretrain.objectives.tasks.class_weights import weights_of_classes
from xlpretrain.run_dir.layout import RunDir

LABELS = ("no", "yes", "maybe")


def test_balanced_weights_are_those_of_scikit_learn():
    targets = np.random.default_rng(0).integers(3, size=50) // 2
    expected = compute_class_weight("balanced", classes=np.arange(2), y=targets)
    assert weights_of_classes("balanced", ("a", "b"), targets.tolist()) == pytest.approx(expected)
    assert weights_of_classes("balanced", ("a", "b", "c"), [0, 0, 1])[2] == 1  # without a target
    assert weights_of_classes({"b": 3.0}, ("a", "b"), []) == [1, 3]
    assert weights_of_classes(None, ("a", "b"), [0]) is None


def _config(source: RunDir, folder: Path, task: str, weights: str):
    if task == "tag":
        made = [
            {"tokens": ["one", "two", "three"][: 1 + i % 3], "tags": ["no", "yes", "no"][: 1 + i % 3]}
            for i in range(12)
        ]
        files = {name: folder / f"{name}.jsonl" for name in ("train", "valid")}
        for path in files.values():
            path.write_text("".join(f"{json.dumps(line)}\n" for line in made))
    else:
        rows = [(f"text number {i}", LABELS[min(i % 5, 2)]) for i in range(12)]
        files = {name: _write(folder / f"{name}.csv", rows, ("text", "label")) for name in ("train", "valid")}
    changes = [
        "model.dropout=0",
        "model.attention_dropout=0",
        "objective.dropout=0",
        f"objective.class_weights={weights}",
    ]
    return finetune_config(source, task=task, **files, name="tuned", runs_dir=source.path.parent, overrides=changes)


@pytest.mark.parametrize("task", ["classify", "tag"])
@pytest.mark.parametrize("weights", ["balanced", "{'yes': 2.5}"])
def test_the_loss_is_torchs_mean_over_the_whole_batch(tmp_path: Path, tiny_dataset: Path, task: str, weights: str):
    """However the samples are divided into micro-batches of ranks, some of them empty."""
    config = _config(make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"}), tmp_path, task, weights)
    data, objective = config.data.open(), config.objective
    (train,) = data.train.manifests
    torch.manual_seed(0)
    model = config.build_model(data.tokenizer.vocabulary.size)
    with torch.no_grad():
        model.head.classifier.weight.mul_(50)
    samples = objective.training_samples(train, mem_len=0, num_streams=12, seed=0, shuffle_blocks=1)
    chosen = [samples.sample(step=0, stream=stream) for stream in range(12)]
    collate, term = objective.collator(data.tokenizer, seed=0), objective.terms[0]

    def gradient_of(divided: list[list[Sample]]) -> tuple[float, torch.Tensor]:
        """Loss and gradient of a step, as the engines add them up."""
        batches = [collate(part) for part in divided]
        scales = LossTermScales(objective.weights)
        scales.start({term: sum(batch.counts[term] for batch in batches)})
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss, _ = model(batch, model.backbone.empty_memory(len(batch.inputs.tokens), 0))
            part = scales.total(loss)
            part.backward()
            total += float(part.detach())
        return total, model.head.classifier.weight.grad.clone()

    whole = collate(chosen)
    hidden, _ = model.backbone(whole.inputs, model.backbone.empty_memory(12, 0))
    outputs, at = model.head.outputs(hidden, whole), whole.targets[f"{term}_positions"]
    logits = outputs.flatten(0, 1)[at] if task == "tag" else outputs[at]
    targets = whole.targets[term]
    names = config.objective.output_names
    of_class = weights_of_classes(objective.class_weights, names, targets.tolist())  # the batch is the whole file
    expected = F.cross_entropy(logits, targets, weight=torch.tensor(of_class))
    model.zero_grad()
    expected.backward()
    gradient = model.head.classifier.weight.grad.clone()
    unweighted = F.cross_entropy(logits, targets)
    assert abs(float(expected.detach() - unweighted.detach())) > 1e-4
    for divided in ([chosen], [chosen[:5], chosen[5:6], chosen[6:]], [chosen[:1], [], chosen[1:]]):
        loss, found = gradient_of(divided)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
        torch.testing.assert_close(found, gradient)


def test_evaluations_are_not_weighted(tmp_path: Path, tiny_dataset: Path):
    config = _config(make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"}), tmp_path, "classify", "balanced")
    data = config.data.open()
    samples = config.objective.evaluation_samples(data.valid, num_tokens=0, num_streams=12, mem_len=0)
    batch = config.objective.collator(data.tokenizer, seed=0)([samples.sample(step=0, stream=i) for i in range(12)])
    assert batch.counts == {"label": 12} and set(batch.targets) == {"label", "label_positions"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("{nay: 2}", r"objective\.class_weights +nay: expected classes among maybe, no, yes"),
        ("{'yes': 0}", "class_weights.*greater than 0"),
        ("{'yes': -1}", "class_weights.*greater than 0"),
        ("{'yes': .inf}", "class_weights.*finite"),
        ("even", "class_weights"),
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, tiny_dataset: Path, weights: str, message: str):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"})
    with pytest.raises(ConfigError, match=message):
        _config(source, tmp_path, "classify", weights)
