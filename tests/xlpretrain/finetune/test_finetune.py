"""Classifiers: fine-tuned as a run like any other, and what they say of texts.

Modules: best_checkpoint.py.
"""

from __future__ import annotations

import csv
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import finish, kill_all, read_metrics, refused, run, start, wait_for_step
from imported_runs import make_run
from labelled_files import PLAIN, _files, _pairs, _write
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

import xlpretrain
from launcher.cli.actions.finetune import predict
from xlpretrain.checkpoint.files import checkpoint_name, list_checkpoints
from xlpretrain.data.examples.base import make_sample
from xlpretrain.data.examples.labelled import LabelledDataset
from xlpretrain.data.samples import Example
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.finetune.results import finetune_config
from xlpretrain.hub.export import export
from xlpretrain.objectives.tasks.classify import UNLABELLED, label_numbers
from xlpretrain.objectives.tasks.lay_out import TextCollator
from xlpretrain.objectives.tasks.metrics.classes import ClassMetrics
from xlpretrain.run_dir.layout import RunDir


def _recipe(source: RunDir, files: dict[str, Path], *overrides: str, **options):
    return finetune_config(source, **files, name="tuned", runs_dir=source.path.parent, overrides=overrides, **options)


@pytest.mark.parametrize("kind", ["transformer_xl", "xlnet", "albert", "bert"])
def test_texts_and_pairs_fit_every_backbone(tmp_path: Path, tiny_dataset: Path, kind: str):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": kind})
    for pairs in (False, True):
        config = _recipe(source, _files(tmp_path, pairs=pairs))
        data = config.data.open()
        collator = config.objective.collator(data.tokenizer, seed=0)
        samples = config.objective.evaluation_samples(data.valid, num_tokens=0, num_streams=3, mem_len=0)
        batch = collator([samples.sample(step=0, stream=stream) for stream in range(3)])
        pieces = [
            data.tokenizer.id_to_token(token)
            for token in batch.inputs.tokens[0][batch.inputs.attention_mask[0]].tolist()
        ]
        marks = [piece for piece in pieces if piece in ("<eod>", "<cls>", "<sep>")]
        expected = {
            "transformer_xl": ["<eod>"] * (2 + pairs),
            "xlnet": [*["<sep>"] * (1 + pairs), "<cls>"],
            "albert": ["<cls>", *["<sep>"] * (1 + pairs)],
        }
        assert marks == expected.get(kind, expected["albert"])
        assert int(batch.inputs.segments.max()) == {"transformer_xl": 0, "xlnet": 2}.get(kind, int(pairs))
        torch.manual_seed(0)
        model = config.build_model(data.tokenizer.vocabulary.size)
        loss, _ = model(batch, model.backbone.empty_memory(3, 0))
        assert loss.sums["label"].item() / 3 == pytest.approx(np.log(3 - pairs), rel=0.3)
        padded = collator([samples.sample(step=0, stream=0)])  # alone, so with less padding
        model.eval()
        whole, _ = model.backbone(batch.inputs, model.backbone.empty_memory(3, 0))
        alone, _ = model.backbone(padded.inputs, model.backbone.empty_memory(1, 0))
        torch.testing.assert_close(model.head.outputs(whole, batch)[:1], model.head.outputs(alone, padded))


@pytest.mark.parametrize("kind", ["transformer_xl", "xlnet", "albert"])
def test_batches_without_rows_or_labels_cost_nothing_and_reach_every_parameter(
    tmp_path: Path, tiny_dataset: Path, kind: str
):
    config = _recipe(make_run(tmp_path / "runs", tiny_dataset, {"type": kind}), _files(tmp_path))
    data = config.data.open()
    model = config.build_model(data.tokenizer.vocabulary.size)
    samples = config.objective.evaluation_samples(data.valid, num_tokens=0, num_streams=3, mem_len=0)
    for read in ([], [samples.sample(step=samples.num_steps, stream=0)]):
        batch = config.objective.collator(data.tokenizer, seed=0)(read)
        model.zero_grad()
        loss, _ = model(batch, model.backbone.empty_memory(len(read), 0))
        assert batch.counts == {"label": 0} and float(loss.sums["label"].detach()) == 0
        loss.sums["label"].backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_what_is_too_long_loses_its_end_the_longer_text_of_a_pair_first(tiny_tokenizer: Path):
    collator = TextCollator("label", torch.int64, 10, CLS_FIRST, load_tokenizer(tiny_tokenizer).vocabulary)
    tokens = collator([make_sample(Example(([11, 12, 13, 14, 15, 16, 17], [21, 22, 23]), 0))]).inputs.tokens[0].tolist()
    assert tokens[1:5] == [11, 12, 13, 14] and tokens[6:9] == [21, 22, 23] and len(tokens) == 10


@pytest.mark.parametrize("kind", ["albert", "bert"])
def test_the_pooler_of_the_sentence_task_goes_on_and_the_classifier_is_new(
    tmp_path: Path, tiny_dataset: Path, group: None, kind: str
):
    from xlpretrain.train.setup import set_up_run

    source = make_run(tmp_path / "runs", tiny_dataset, {"type": kind})
    built = set_up_run(_recipe(source, _files(tmp_path), *PLAIN), device=torch.device("cpu"))
    with closing(built.lease), built.recorder:
        pass
    theirs = xlpretrain.load(source.path, device="cpu").model.state_dict()
    ours = built.engine.model.state_dict()
    assert torch.equal(ours["head.sentence.pooler.linear.weight"], theirs["head.sentence.pooler.linear.weight"].float())
    assert all(torch.equal(ours[name], theirs[name].float()) for name in ours if name.startswith("backbone."))
    assert ours["head.classifier.weight"].std() < 0.03  # theirs would be 0.3


def test_every_mistake_is_said_before_anything_is_written(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"})
    files, header = _files(tmp_path), ("text", "label")
    cases = [
        ([("a", "aye"), ("b", "aye")], "all rows have the label 'aye'"),
        ([], "has no rows"),
        ([("a", "aye"), ("b", " ")], r"line 3: no label \(label\); add one, or remove the row"),
        ([("a", "aye"), ("b", "NaN")], r"line 3: no label \(label\), but NaN"),
    ]
    for samples, message in cases:
        with pytest.raises(DataError, match=message):
            _recipe(source, files | {"train": _write(tmp_path / "bad.csv", samples, header)})
    strange = _write(tmp_path / "strange.csv", [("a", "aye"), ("b", "veto"), ("c", "veto")], header)
    with pytest.raises(DataError, match=r"labels that are not in .*train.csv: 'veto' \(2 rows\)"):
        _recipe(source, files | {"valid": strange})
    with pytest.raises(DataError, match="no column 'mark'"):
        _recipe(source, files, text=("text",), label="mark")
    wide = {name: _write(tmp_path / f"{name}w.csv", [("a", "b", "c", "x")], ("p", "q", "r", "label")) for name in files}
    with pytest.raises(ConfigError, match="unknown text column"):
        _recipe(source, wide)
    with pytest.raises(ConfigError, match=r"objective\.seq_len"):
        _recipe(source, files, "objective.seq_len=99")
    with pytest.raises(ConfigError, match=r"data\.type"):
        _recipe(source, files, "objective={type: masked_lm, seq_len: 32}")
    assert not (tmp_path / "runs" / "tuned").exists()
    with pytest.raises(ConfigError, match="not fine-tuned for a task"):
        xlpretrain.load(source.path, device="cpu").predict(["a"])


def test_blanks_around_a_label_make_no_class(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"})
    rows = [("a", "aye"), ("b", " aye"), ("c", "nay "), ("d", "nay")]
    files = {name: _write(tmp_path / f"{name}.csv", rows, ("text", " label")) for name in ("train", "valid")}
    config = _recipe(source, files)
    assert config.objective.labels == ("aye", "nay")
    found = config.objective.evaluation_samples(config.data.open().valid, num_tokens=0, num_streams=1, mem_len=0)
    assert [found.sample(step=step, stream=0).example.target for step in range(4)] == [0, 0, 1, 1]
    # A classifier of an older version may have them in its labels.
    assert label_numbers(["aye", " aye", "x"], ("aye", " aye")) == [0, 1, UNLABELLED]
    assert label_numbers(["aye"], (" aye",)) == [0]


def test_texts_that_are_cut_are_counted(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"})
    config = _recipe(source, _files(tmp_path, pairs=True), "objective.seq_len=16")
    data, objective = config.data.open(), config.objective
    (train,) = data.train.manifests
    parts = [example.parts for example in train.examples]
    longer = sum(sum(map(len, texts)) + 3 > 16 for texts in parts)
    assert 0 < longer < len(parts) and objective.num_cut(parts) == longer
    assert list(objective.data_notes(train)) == [
        f"{train.path}: {longer} of {len(parts)} examples are longer than a sample of 16 tokens"
        " (objective.seq_len) and are truncated"
    ]
    fits = max(sum(map(len, texts)) for texts in parts) + 3
    assert list(objective.model_copy(update={"seq_len": fits}).data_notes(train)) == []


@pytest.mark.parametrize("num_cases", [50, pytest.param(1000, marks=pytest.mark.full)])
def test_figures_are_those_of_their_formulas(num_cases: int):
    """Random cases, with ties, labels that do not occur, and predictions that are all the same."""
    rng = np.random.default_rng(0)
    for case in range(num_cases):
        labels = ("a", "b", "c")[: 2 + case % 2]
        truth = rng.integers(1 if case % 10 == 0 else len(labels), size=rng.integers(1, 30))
        probabilities = np.round(rng.dirichlet(np.ones(len(labels)), len(truth)), 1 if case % 3 else 9)
        probabilities[:, 0] += case % 7 == 0  # all predictions are the first label
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        figures = ClassMetrics.compute([labels[i] for i in truth], probabilities, labels)
        confusion = np.zeros((len(labels), len(labels)))
        np.add.at(confusion, (truth, probabilities.argmax(axis=1)), 1)
        right, given, wanted = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
        assert figures.confusion == confusion.tolist()
        assert figures.accuracy == pytest.approx(right.sum() / len(truth), abs=1e-12)
        assert figures.macro_f1 == pytest.approx(np.mean(2 * right / np.maximum(given + wanted, 1)), abs=1e-12)
        squares = (len(truth) ** 2 - given @ given) * (len(truth) ** 2 - wanted @ wanted)
        correlation = (right.sum() * len(truth) - given @ wanted) / np.sqrt(squares) if squares else None
        assert figures.matthews == (None if correlation is None else pytest.approx(correlation, abs=1e-12))
        areas = [_area(truth == label, probabilities[:, label]) for label in range(len(labels)) if wanted.all()]
        assert figures.roc_auc == (pytest.approx(np.mean(areas), abs=1e-12) if areas else None)


def _area(is_label: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of an example with the label and one without that are in order; ties count half."""
    above = scores[is_label][:, None] - scores[~is_label][None]
    return float(np.mean((above > 0) + (above == 0) / 2))


def test_a_classifier_from_the_command_line(tmp_path: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "xlnet"})
    files, folder = _files(tmp_path), tmp_path / "runs" / "tuned"
    options = ["--train", files["train"], "--valid", files["valid"], "--name", "tuned", "--runs-dir", tmp_path / "runs"]
    recipe_of_test = [*PLAIN, "optimizer.lr=0.01", "max_steps=60", "schedule.warmup_steps=5", "stop.patience=8"]
    out, _ = run("finetune", source.path, *options, "--nproc", 1, *recipe_of_test)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"accuracy {metrics['accuracy']:.4f}" in out and metrics["accuracy"] > 0.5
    logged = {
        sample["step"]: (sample["valid/label_accuracy"], -sample["valid/loss"])
        for sample in read_metrics(folder)
        if "valid/loss" in sample
    }
    best = max(logged, key=lambda step: (logged[step], -step))
    assert metrics["step"] == best and metrics["accuracy"] == pytest.approx(logged[best][0])
    assert {path.name for path in list_checkpoints(folder / "checkpoints")} == {
        checkpoint_name(step) for step in (best, max(sample["step"] for sample in read_metrics(folder)))
    }
    with (folder / "predictions.csv").open(newline="") as file:
        samples = list(csv.DictReader(file))
    truth, predicted = [sample["label"] for sample in samples], [sample["predicted"] for sample in samples]
    assert (
        truth
        == LabelledDataset.open(
            files["valid"], load_tokenizer(folder / "tokenizer" / "spiece.model"), text=("text",), label="label"
        ).labels
    )
    assert metrics["accuracy"] == accuracy_score(truth, predicted)
    assert metrics["macro_f1"] == f1_score(truth, predicted, average="macro")
    shares = np.array([[float(sample[f"p({label})"]) for label in metrics["labels"]] for sample in samples])
    assert metrics["roc_auc"] == roc_auc_score(truth, shares, multi_class="ovr")
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")

    new = tmp_path / "new.txt"
    new.write_text("".join(f"{sample['text']}\n" for sample in samples[:5]))
    source.path.rename(tmp_path / "gone")  # a classifier stands by itself
    out, _ = run("predict", folder, "--input", new)
    assert [line.split("\t")[0] for line in out.splitlines()] == predicted[:5]
    probabilities = xlpretrain.load(folder, device="cpu").predict([sample["text"] for sample in samples[:5]])
    assert [max(of, key=of.__getitem__) for of in probabilities] == predicted[:5]
    _predicts_where_labels_are_unknown(xlpretrain.load(folder, device="cpu"), tmp_path, samples, capsys)
    _refuses_what_is_no_list_of_texts(xlpretrain.load(folder, device="cpu"))
    with pytest.raises(ConfigError, match="cannot generate text: objective classify does not predict the next token"):
        xlpretrain.load(folder, device="cpu").generate("a")
    with pytest.raises(ConfigError, match="objective classify has no likelihood of a text"):
        xlpretrain.load(folder, device="cpu").log_likelihoods(["a"])
    assert "AutoModelForSequenceClassification" in export(RunDir(folder), tmp_path / "out")
    assert f"its metrics are in {folder / 'metrics.json'}" in refused("report", folder)


def _predict(loaded: LoadedRun, data: Path) -> None:
    predict(loaded.folder.path, data, None, step=None, precision=None, weights="trained")


def _predicts_where_labels_are_unknown(
    loaded: LoadedRun, tmp_path: Path, rows: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    texts, labels = [row["text"] for row in rows[:6]], [row["label"] for row in rows[:6]]
    right = sum(row["label"] == row["predicted"] for row in rows[:3]) / 3
    given = [f" {labels[0]}", labels[1], f"{labels[2]} ", "-1", "", "-1"]
    predict(
        loaded.folder.path,
        _write(tmp_path / "some.csv", list(zip(texts, given, strict=True)), ("text", "label")),
        None,
        step=None,
        precision=None,
        weights="trained",
    )
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 6
    assert "3 of 6 examples have labels unknown to the classifier: '-1' (2), '' (1); they are excluded" in err
    assert f"accuracy {right:.4f}" in err and "of 3 examples" in err
    predict(
        loaded.folder.path,
        _write(tmp_path / "none.csv", [(text, "-1") for text in texts], ("text", "label")),
        None,
        step=None,
        precision=None,
        weights="trained",
    )
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 6 and "6 of 6 examples have labels unknown" in err and "accuracy" not in err
    long = " ".join(texts * 9)
    predict(
        loaded.folder.path,
        _write(tmp_path / "long.csv", [(long,), (texts[0],)], ("text",)),
        None,
        step=None,
        precision=None,
        weights="trained",
    )
    assert "long.csv: 1 of 2 examples are longer than a sample" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="1 of 1 examples are longer than a sample"):
        loaded.predict([long])


def _refuses_what_is_no_list_of_texts(loaded: LoadedRun) -> None:
    for texts, message in [
        ("A film.", r"predict: expected a list of texts, got a single text; write predict\(\[text\]\)"),
        ([None], "expected texts or pairs of texts, got an element of type NoneType"),
        ([(1,)], "example 1: expected a string, got a int"),
        ([("a", "b")], r"expected 1 texts per example \(text\), got 2 in example 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            loaded.predict(texts)
    with pytest.raises(DataError, match="example 2: invalid Unicode: a lone surrogate at character 1"):
        loaded.predict(["a", "a\ud800"])


@pytest.mark.full
def test_it_resumes_in_every_bit_and_several_seeds_have_a_mean_and_a_spread(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"})
    files = _files(tmp_path, pairs=True)
    options = ["--train", files["train"], "--valid", files["valid"], "--runs-dir", tmp_path / "runs", "--nproc", 2]
    changes = [*PLAIN, "optimizer.lr=0.01", "max_steps=40", "schedule.warmup_steps=5", "eval.every_steps=5"]
    changes += ["optimizer.layer_decay=0.9", 'optimizer.frozen=["backbone.embedding.positions.*"]']
    command = ["finetune", source.path, *options, *changes, "checkpoint.every_steps=5", "--name"]
    run(*command, "whole")
    process = start(*command, "killed")
    wait_for_step(tmp_path / "runs" / "killed", 17, process)
    kill_all(process)
    finish(start(*command, "killed"), expect=0)
    for name in ("predictions.csv", "metrics.json"):
        whole, killed = (tmp_path / "runs" / run / name for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()
    out, _ = run(*command, "many", "--seeds", 3)
    summary = json.loads((tmp_path / "runs" / "many" / "metrics.json").read_text())
    for figure in ("accuracy", "macro_f1", "roc_auc"):
        values = [
            json.loads((tmp_path / "runs" / "many" / f"seed-{seed}" / "metrics.json").read_text())[figure]
            for seed in (1, 2, 3)
        ]
        assert summary[figure]["values"] == values
        assert summary[figure]["mean"] == pytest.approx(np.mean(values))
        assert summary[figure]["spread"] == pytest.approx(np.std(values, ddof=1))
    assert "mean and standard deviation of 3 seeds" in out
    new = _write(tmp_path / "new.csv", _pairs(9, seed=7), ("first", "second", "label"))
    _, err = run("predict", tmp_path / "runs" / "many" / "seed-2", "--input", new, "--to", tmp_path / "said.csv")
    with (tmp_path / "said.csv").open(newline="") as file:
        samples = list(csv.DictReader(file))
    right = accuracy_score([sample["label"] for sample in samples], [sample["predicted"] for sample in samples])
    assert f"accuracy {right:.4f}" in err and len(samples) == 9
