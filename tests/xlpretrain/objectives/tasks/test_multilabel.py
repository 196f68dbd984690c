"""Several labels for a text: files, metrics, loss and predictions.

Modules: multilabelled.py, labels.py, config.py (data/examples).
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import run
from imported_runs import make_run, make_task_run
from labelled_files import PLAIN, _write
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

import xlpretrain
from xlpretrain.data.examples.multilabelled import MultilabelledDataConfig, MultilabelledDataset
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.finetune.results import finetune_config
from xlpretrain.objectives.tasks.metrics.labels import LabelMetrics
from xlpretrain.objectives.tasks.multilabel import MultilabelClassification
from xlpretrain.run_dir.layout import RunDir


def _read(path: Path, tokenizer: Path, *, unlabelled: bool = False, **keys) -> MultilabelledDataset:
    files = MultilabelledDataConfig(train=path, tokenizer=tokenizer, **keys)
    open_file = files.open_unlabelled if unlabelled else files.open_split
    return open_file(path, load_tokenizer(tokenizer))


def _targets(path: Path, tokenizer: Path, **keys) -> list[tuple[str, ...] | None]:
    return [example.target for example in _read(path, tokenizer, **keys).examples]


def test_labels_are_separated_or_lists_or_columns(tmp_path: Path, tiny_tokenizer: Path):
    header, expected = ("text", "label"), [("a", "b"), ("c",), ()]
    separated = _write(tmp_path / "1.csv", [("x", " a | b |"), ("x", "c"), ("x", "[]")], header)
    assert _targets(separated, tiny_tokenizer) == expected
    commas = _write(tmp_path / "2.csv", [("x", "a,b,a"), ("x", "c"), ("x", "[]")], header)
    assert _targets(commas, tiny_tokenizer, separator=",") == expected
    listed = _write(tmp_path / "3.csv", [("x", '["a", "b"]'), ("x", "['c']"), ("x", "[]")], header)
    assert _targets(listed, tiny_tokenizer) == expected
    lines = tmp_path / "4.jsonl"
    rows = [{"text": "x", "label": of} for of in (["a", "b"], "c", [])]
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert _targets(lines, tiny_tokenizer) == expected
    columns = _write(tmp_path / "5.csv", [("x", 1, 1, 0), ("x", 0, "0.0", 1), ("x", 0, 0, 0)], ("text", "a", "b", "c"))
    data = _read(columns, tiny_tokenizer, label=("a", "b", "c"))
    assert [example.target for example in data.examples] == expected and data.names == ("a", "b", "c")
    assert data.labels == ['["a", "b"]', '["c"]', "[]"]


def test_a_file_to_predict_may_lack_labels(tmp_path: Path, tiny_tokenizer: Path):
    bare = _write(tmp_path / "1.csv", [("x",), ("y",)], ("text",))
    assert _targets(bare, tiny_tokenizer, unlabelled=True) == [None, None]
    assert _targets(bare, tiny_tokenizer, unlabelled=True, label=("a", "b")) == [None, None]
    some = _write(tmp_path / "2.csv", [("x", -1, -1), ("y", 0, 1)], ("text", "a", "b"))
    assert _targets(some, tiny_tokenizer, unlabelled=True, label=("a", "b")) == [None, ("b",)]
    lines = tmp_path / "3.jsonl"
    lines.write_text('{"text": "x", "label": null}\n{"text": "y"}\n{"text": "z", "label": ["a"]}\n')
    assert _targets(lines, tiny_tokenizer, unlabelled=True) == [None, None, ("a",)]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a", ""], r"line 3: no labels \(label\); add them, remove the row, or write \[\] for a text that has none"),
        (["a", "nan"], r"line 3: no labels \(label\)"),
        (["a", "[a, b]"], r'line 3: expected a list of labels such as \["news", "sport"\], got \[a, b\]'),
        (["a", "['a' 'b']"], "line 3: expected a list of labels"),  # as NumPy prints it
        (["a", '["a", null]'], "line 3: expected a list of labels"),
        (["a", '["a", ""]'], "line 3: expected a list of labels"),
        (["a", '["a", 0.5]'], "line 3: expected a list of labels"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(tmp_path: Path, tiny_tokenizer: Path, cells: list[str], message: str):
    path = _write(tmp_path / "data.csv", [("x", cell) for cell in cells], ("text", "label"))
    with pytest.raises(DataError, match=message):
        _read(path, tiny_tokenizer)


def test_columns_of_other_numbers_are_refused(tmp_path: Path, tiny_tokenizer: Path):
    path = _write(tmp_path / "data.csv", [("x", 1, 0), ("x", 2, 0)], ("text", "a", "b"))
    with pytest.raises(DataError, match="line 3: the label column 'a' must be 0 or 1, got '2'"):
        _read(path, tiny_tokenizer, label=("a", "b"))
    with pytest.raises(DataError, match="no column 'c'; the columns are: text, a, b"):
        _read(path, tiny_tokenizer, label=("a", "c"))


def test_files_that_cannot_be_learned_are_refused(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"})

    def recipe(train: list[tuple[str, str]], valid: list[tuple[str, str]], **options):
        files = {"train": train, "valid": valid}
        paths = {name: _write(tmp_path / f"{name}.csv", rows, ("text", "label")) for name, rows in files.items()}
        options = {"task": "multilabel", "name": "tuned", "runs_dir": tmp_path / "runs", **options}
        return finetune_config(source, **paths, **options)

    good = [("x", "a|b"), ("y", "[]")]
    config = recipe(good, good)
    assert config.objective.labels == ("a", "b") and config.eval.best == "mean_average_precision"
    assert recipe([("x", "a;b"), ("y", "a")], [("x", "b")], overrides=["data.separator=;"]).objective.labels == (
        "a",
        "b",
    )
    with pytest.raises(DataError, match=r"labels that are not in .*train.csv: 'c' \(2 rows\)"):
        recipe(good, [("x", "c"), ("x", "c|a")])
    with pytest.raises(DataError, match="all texts with a label have 'a'; at least two labels are needed"):
        recipe([("x", "a"), ("y", "[]")], good)
    with pytest.raises(DataError, match="no text has a label; at least two"):
        recipe([("x", "[]")], good)
    with pytest.raises(ConfigError, match=r"--label: expected one column, got a, b .*--task multilabel"):
        recipe(good, good, task="classify", label=("a", "b"))
    with pytest.raises(ConfigError, match=r"data\.train, data\.valid: set them with --train and --valid"):
        recipe(good, good, overrides=["data.valid=other.csv"])
    columns = _write(tmp_path / "columns.csv", [("x", 1, 0), ("y", 1, 0)], ("text", "a", "b"))
    with pytest.raises(DataError, match="no text has the label b; remove the column, or add texts"):
        finetune_config(
            source,
            task="multilabel",
            train=columns,
            valid=columns,
            label=("a", "b"),
            name="tuned",
            runs_dir=tmp_path / "runs",
        )
    assert not (tmp_path / "runs" / "tuned").exists()


@pytest.mark.parametrize("num_cases", [50, pytest.param(1000, marks=pytest.mark.full)])
def test_metrics_are_those_of_scikit_learn(num_cases: int):
    rng = np.random.default_rng(0)
    labels = ("a", "b", "c")
    for case in range(num_cases):
        truth = rng.integers(2, size=(rng.integers(1, 12), 3)).astype(float)
        truth[:, case % 3] *= case % 2  # in half of the cases, a label does not occur
        found = np.round(rng.random(truth.shape), 1)  # with ties
        of = LabelMetrics.compute(truth, found, labels, threshold=0.5)
        wanted, predicted = truth > 0, found >= 0.5
        assert of.exact_match == accuracy_score(wanted, predicted)
        for average in ("micro", "macro"):
            expected = f1_score(wanted, predicted, average=average, zero_division=0)
            assert getattr(of, f"{average}_f1") == pytest.approx(expected, abs=1e-12)
        occur = wanted.any(axis=0)
        if occur.any():
            expected = average_precision_score(wanted[:, occur], found[:, occur], average="macro")
            assert of.mean_average_precision == pytest.approx(expected, abs=1e-12)
        else:
            assert of.mean_average_precision is None
        assert [of.per_label[label]["average_precision"] is None for label in labels] == (~occur).tolist()


def test_the_loss_is_the_binary_cross_entropy(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "xlnet"})
    rows = [("one text", "a|b"), ("another", "[]"), ("third", "c")]
    files = {name: _write(tmp_path / f"{name}.csv", rows, ("text", "label")) for name in ("train", "valid")}
    run = xlpretrain.load(make_task_run(source, "multilabel", files).path, device="cpu")
    objective, samples = run.task[0], run.task[0].evaluation_samples(run.valid, num_tokens=0, num_streams=4, mem_len=0)
    # One of the streams is empty.
    batch = objective.collator(run.tokenizer, seed=0)([samples.sample(step=0, stream=i) for i in range(4)])
    with torch.no_grad():
        loss, _ = run.model(batch, run.model.backbone.empty_memory(4, 0))
    labels, outputs = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 1]]), loss.outputs[batch.targets["labels_positions"]]
    expected = F.binary_cross_entropy_with_logits(outputs, labels)
    assert batch.counts == {"labels": 3}
    torch.testing.assert_close(loss.sums["labels"] / 3, expected)
    assert loss.scores["labels"].correct.tolist() == ((outputs > 0) == (labels > 0)).all(1).tolist()
    empty = objective.collator(run.tokenizer, seed=0)([])
    loss, _ = run.model(empty, run.model.backbone.empty_memory(0, 0))
    assert float(loss.sums["labels"].detach()) == 0


WORDS = {"Bation": "b", "Tring": "t", "Wone": "w"}


def _rows(count: int, *, seed: int) -> list[tuple[str, str]]:
    """Texts of up to three words, each of which is a label."""
    rng = random.Random(seed)
    chosen = [rng.sample(list(WORDS), rng.randrange(4)) for _ in range(count)]
    return [(" ".join([*words, "is", "here"]), "|".join(WORDS[w] for w in words) or "[]") for words in chosen]


def test_several_labels_from_the_command_line(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"})
    sizes, header = {"train": 128, "valid": 40}, ("text", "label")
    files = {name: _write(tmp_path / f"{name}.csv", _rows(n, seed=n), header) for name, n in sizes.items()}
    options = ["--train", files["train"], "--valid", files["valid"], "--name", "tuned", "--runs-dir", tmp_path / "runs"]
    recipe = [*PLAIN, "optimizer.lr=0.01", "max_steps=60", "schedule.warmup_steps=5", "stop.patience=99"]
    out, _ = run("finetune", source.path, "--task", "multilabel", *options, "--nproc", 1, *recipe)
    folder = RunDir(tmp_path / "runs" / "tuned")
    metrics = json.loads(folder.figures.read_text())
    assert f"mean_average_precision {metrics['mean_average_precision']:.4f}, micro_f1" in out
    assert metrics["mean_average_precision"] > 0.7
    with folder.predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted, found = ([set(row[key].split("|")) - {"[]"} for row in rows] for key in ("label", "predicted"))
    assert metrics["exact_match"] == pytest.approx(np.mean([a == b for a, b in zip(wanted, found, strict=True)]))
    shares = [{label: float(row[f"p({label})"]) for label in "btw"} for row in rows]
    assert found == [{label for label, share in of.items() if share >= 0.5} for of in shares]
    answers = xlpretrain.load(folder.path, device="cpu").predict([row["text"] for row in rows[:5]])
    assert answers == [pytest.approx(of, abs=1e-5) for of in shares[:5]]
    # The table of predictions is an input again.
    printed, err = run("predict", folder.path, "--input", folder.predictions)
    assert len(printed.splitlines()) == 40 and f"exact_match {metrics['exact_match']:.4f}" in err
    strange = _write(tmp_path / "strange.csv", [("Bation is here", "b"), ("x", "z|b")], header)
    _, err = run("predict", folder.path, "--input", strange)
    assert "1 of 2 examples have labels unknown to the classifier: 'z' (1)" in err and "of 1 examples" in err


def test_a_higher_threshold_predicts_fewer_labels(tmp_path: Path, tiny_tokenizer: Path):
    data = _read(_write(tmp_path / "1.csv", [("x", "a"), ("y", "b")], ("text", "label")), tiny_tokenizer)
    task = MultilabelClassification(labels=("a", "b"), layout="cls_first")
    found = task.predictions(data, [np.array([0.0, 2.0]), np.array([-1.0, -1.0])])
    assert list(task.lines(found)) == ["a 0.5000, b 0.8808", "[]"]
    high = task.model_copy(update={"threshold": 0.9})
    assert list(high.lines(found)) == ["[]", "[]"] and high.metrics(data, found)["micro_f1"] == 0
