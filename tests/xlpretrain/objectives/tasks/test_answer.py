"""Question answering: windows, spans, thresholds, metrics.

Modules: questions.py, answers.py, squad.py.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from imported_runs import make_run, make_task_run
from labelled_files import PLAIN

import xlpretrain
from xlpretrain.data.examples.base import make_sample
from xlpretrain.data.examples.questions import QuestionsDataset
from xlpretrain.data.tables.squad import Question
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.objectives.tasks.answer import Answering
from xlpretrain.objectives.tasks.metrics.answers import best_threshold, exact_match, f1


def _dataset(tokenizer: Path, *asked: Question) -> QuestionsDataset:
    return QuestionsDataset(asked, Path("made"), load_tokenizer(tokenizer))


def _question(context: str, answer: str | None, number: int = 1) -> Question:
    start = -1 if answer is None else context.index(answer)
    answers = () if answer is None else ((start, start + len(answer)),)
    return Question(str(number), "Which word?", context, answers, f"question {number}")


def test_tokens_cover_the_characters_of_a_text(tiny_tokenizer: Path):
    tokenizer = load_tokenizer(tiny_tokenizer)
    text = "  Émile  a dit: “Bation” ﬁn — 東京 in"
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids == tokenizer.encode(text)
    assert spans.shape == (len(ids), 2) and (spans[1:, 0] >= spans[:-1, 0]).all()
    assert text[slice(*spans[-1])] == "in" and spans[-1, 1] == len(text)


@pytest.mark.parametrize("seq_len", [80, 100, 384])
def test_windows_cover_the_context_and_find_the_answer(tiny_tokenizer: Path, seq_len: int):
    words = [f"word{i}" for i in range(60)]
    data = _dataset(tiny_tokenizer, _question(" ".join(words), "word33 word34"), _question("short", None, 2))
    for layout in ("cls_first", "cls_last", "document"):
        task = Answering(layout=layout, seq_len=seq_len, stride=20, may_lack_answers=True)
        tokens = data.examples[0].parts[1]
        windows = [window for window in task.numbered(data) if window.number == 0]
        covered = set()
        for window in windows:
            context = window.parts[1]
            assert context == tokens[window.offset : window.offset + len(context)]
            assert len(window.parts[0]) + len(context) + task.token_layout.num_symbols(2) <= seq_len
            covered |= set(range(window.offset, window.offset + len(context)))
            first, last = data.examples[0].target
            inside = first >= window.offset and last < window.offset + len(context)
            assert window.target == ((first - window.offset, last - window.offset) if inside else ())
        assert covered == set(range(len(tokens))) and any(window.target for window in windows)


@pytest.mark.parametrize("layout", ["cls_first", "cls_last", "document"])
def test_the_best_span_over_windows_is_the_answer(tiny_tokenizer: Path, layout: str):
    """Outputs that point at the answer where it is, and at the special token elsewhere."""
    words = [f"word{i}" for i in range(60)]
    data = _dataset(tiny_tokenizer, _question(" ".join(words), "word33 word34"), _question("short", None, 2))
    task = Answering(layout=layout, seq_len=100, stride=20, may_lack_answers=True)
    tokenizer = load_tokenizer(tiny_tokenizer)
    windows = task.numbered(data)
    batch = task.collator(tokenizer, seed=0)([make_sample(window) for window in windows])
    outputs = np.zeros((len(windows), batch.inputs.tokens.shape[1], 2), np.float32)
    for row, (first, last) in zip(outputs, batch.targets["answer"].tolist(), strict=True):
        row[first, 0], row[last, 1] = 5, 5
    found = task.predictions(data, list(outputs))
    assert task.answers(found) == ["word33 word34", ""]
    assert task.metrics(data, found) == {"f1": 100.0, "exact_match": 100.0}
    assert task.report(data, found)["num_examples"] == 2


def _squad_of_torchmetrics(truth: list[list[str]], found: list[str]) -> dict[str, float]:
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    predictions = [{"prediction_text": text, "id": str(i)} for i, text in enumerate(found)]
    target = [
        {"answers": {"text": texts, "answer_start": [0] * len(texts)}, "id": str(i)} for i, texts in enumerate(truth)
    ]
    return {name: float(value) for name, value in squad(predictions, target).items()}


def test_metrics_are_those_of_squad():
    rng = random.Random(0)
    vocabulary = ["the", "a", "Paris", "paris!", "in", "U.S.", "café", "—", "12", ""]

    def text() -> str:
        return " ".join(rng.choice(vocabulary) for _ in range(rng.randrange(4)))

    truth = [[text() for _ in range(rng.randrange(1, 4))] for _ in range(1000)]
    found = [rng.choice([*texts, text()]) for texts in truth]
    of = {
        "f1": 100 * np.mean([max(f1(t, said) for t in texts) for texts, said in zip(truth, found, strict=True)]),
        "exact_match": 100
        * np.mean([max(exact_match(t, said) for t in texts) for texts, said in zip(truth, found, strict=True)]),
    }
    # Known by hand: articles, case and punctuation do not count.
    assert exact_match("The U.S.", "us") == 1 and f1("in the city of Paris", "Paris, city!") == pytest.approx(2 / 3)
    assert f1("", "") == 1 and f1("", "Paris") == 0 and f1("Paris", "") == 0
    theirs = _squad_of_torchmetrics(truth, found)
    assert of["exact_match"] == pytest.approx(theirs["exact_match"], abs=1e-4)
    assert of["f1"] == pytest.approx(theirs["f1"], abs=1e-4)


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 12))
        of_answer, of_nothing = rng.integers(0, 2, (2, count)).astype(float)
        leads = rng.integers(-3, 4, count).astype(float)

        def total(threshold: float, of_answer=of_answer, of_nothing=of_nothing, leads=leads) -> float:
            return float(np.where(leads > threshold, of_nothing, of_answer).sum())

        best = max(total(threshold) for threshold in np.arange(-5, 5, 0.5))
        assert total(best_threshold(*(values.tolist() for values in (of_answer, of_nothing, leads)))) == best


@pytest.mark.parametrize("kind", ["transformer_xl", "xlnet", "albert", "bert"])
def test_the_loss_is_the_mean_of_start_and_end(tmp_path: Path, tiny_dataset: Path, kind: str):
    size = {"max_positions": 160} if kind in ("albert", "bert") else {}
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": kind, **size})
    files = {name: _write(tmp_path / f"{name}.json", 3, seed=1) for name in ("train", "valid")}
    loaded = xlpretrain.load(make_task_run(source, "answer", files).path, device="cpu")
    task, _ = loaded.task
    samples = task.evaluation_samples(loaded.valid, num_tokens=0, num_streams=4, mem_len=0)
    read = [samples.sample(step=0, stream=stream) for stream in range(4)]
    batch = task.collator(loaded.tokenizer, seed=0)(read)
    with torch.no_grad():
        loss, _ = loaded.model(batch, loaded.model.backbone.empty_memory(4, 0))
    rows = loss.outputs[batch.targets["answer_positions"]].log_softmax(1)
    spans = batch.targets["answer"]
    expected = -sum((rows[i, a, 0] + rows[i, b, 1]) / 2 for i, (a, b) in enumerate(spans.tolist()))
    torch.testing.assert_close(loss.sums["answer"], expected)
    found = loaded.predict([("Which word?", "The answer is Bation today.")])
    assert isinstance(found[0], str)


def _write(path: Path, count: int, *, seed: int) -> Path:
    """Contexts in which the word after `is` is the answer; every third question has none."""
    rng, asked = random.Random(seed), []
    for number in range(count):
        words = [rng.choice(["Bation", "Tring", "Wone"]) for _ in range(rng.randrange(3, 9))]
        answer, at = rng.choice(["Bation", "Tring"]), rng.randrange(len(words))
        context = " ".join([*words[:at], "is", answer, *words[at:]])
        start = context.index("is ") + 3
        answers = [] if number % 3 == 2 else [{"text": answer, "answer_start": start}]
        context = context.replace("is ", "") if not answers else context
        qas = [{"id": f"q{number}", "question": "What is it?", "answers": answers, "is_impossible": not answers}]
        asked.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "", "paragraphs": asked}]}))
    return path


@pytest.mark.full
def test_answers_from_the_command_line(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "bert", "max_positions": 160})
    files = {name: _write(tmp_path / f"{name}.json", n, seed=n) for name, n in {"train": 96, "valid": 40}.items()}
    options = ["--train", files["train"], "--valid", files["valid"], "--name", "tuned", "--runs-dir", tmp_path / "runs"]
    recipe = [*PLAIN, "optimizer.lr=0.01", "max_steps=60", "schedule.warmup_steps=5"]
    out, _ = run("finetune", source.path, "--task", "answer", *options, "--nproc", 2, *recipe)
    folder = tmp_path / "runs" / "tuned"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"f1 {metrics['f1']:.4f}, exact_match" in out and metrics["no_answer_threshold"] is not None
    _, err = run("predict", folder, "--input", files["valid"], "--to", tmp_path / "said.json")
    assert f"f1 {metrics['f1']:.4f}" in err
    said = json.loads((tmp_path / "said.json").read_text())
    assert len(said) == 40 and set(said) == {f"q{number}" for number in range(40)}
