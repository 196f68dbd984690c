"""Tagging: words, entities, metrics and predictions.

Modules: tagged.py, entities.py.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from imported_runs import make_run
from labelled_files import PLAIN

import xlpretrain
from xlpretrain.data.examples.base import make_sample
from xlpretrain.data.examples.tagged import TaggedDataset
from xlpretrain.data.tables.tagged_words import TaggedSentence
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import DataError
from xlpretrain.finetune.results import finetune_config
from xlpretrain.objectives.tasks.metrics.entities import Entity, EntityScores, entities, entity_scores
from xlpretrain.objectives.tasks.tag import Tagging

TAGS = ("B-A", "B-B", "I-A", "I-B", "O")


def _dataset(tokenizer: Path, tags: list[tuple[str, ...] | None], words: list[tuple[str, ...]] | None = None):
    words = words or [tuple(f"w{i}" for i in range(len(of or "a"))) for of in tags]
    found = [TaggedSentence(w, t, number) for number, (w, t) in enumerate(zip(words, tags, strict=True), 1)]
    return TaggedDataset(found, Path("made"), load_tokenizer(tokenizer))


def _entities(rng: random.Random) -> tuple[str, ...]:
    """Random entities of one to three words, or none."""
    found: list[str] = []
    for _ in range(rng.randrange(1, 6)):
        kind = rng.choice(["A", "B", None])
        found += ["O"] if kind is None else [f"B-{kind}", *[f"I-{kind}"] * rng.randrange(3)]
    return tuple(found)


def test_entities_are_those_of_seqeval():
    """Its only release has no wheel, so it is not among the packages of the tests."""
    theirs = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    for _ in range(1000):
        truth = [list(_entities(rng)) for _ in range(4)]
        found = [[rng.choice([tag, *TAGS]) for tag in sentence] for sentence in truth]
        assert entity_scores(truth, found) == pytest.approx(
            tuple(getattr(theirs, f"{name}_score")(truth, found, zero_division=0) for name in EntityScores._fields)
        )


def test_an_entity_is_found_if_its_words_and_its_type_are_right():
    assert list(entities(["O", "B-A", "I-A", "B-A", "I-B", "I-B", "O", "I-A"])) == [
        Entity(1, 3, "A"),
        Entity(3, 4, "A"),
        Entity(4, 6, "B"),
        Entity(7, 8, "A"),
    ]
    truth = [["B-A", "I-A", "O", "B-B"], ["B-A"]]
    found = [["B-A", "I-A", "O", "B-A"], ["O"]]
    assert entity_scores(truth, found) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert entity_scores([["O"]], [["O"]]) == (0, 0, 0)


def test_words_and_entities_are_scored(tiny_tokenizer: Path):
    task = Tagging(tags=TAGS, layout="cls_first")
    of = task.metrics(_dataset(tiny_tokenizer, [("B-A", "I-A", "O", "B-B")]), [["B-A", "I-A", "O", "B-A"]])
    assert of == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "word_accuracy": 0.75}
    none = task.metrics(_dataset(tiny_tokenizer, [("O", "O")]), [["O", "O"]])
    assert none == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "word_accuracy": 1.0}
    parts = Tagging(tags=("NOUN", "VERB"), layout="cls_first").metrics(
        _dataset(tiny_tokenizer, [("NOUN", "VERB")]), [["NOUN", "NOUN"]]
    )
    assert parts == {"f1": None, "precision": None, "recall": None, "word_accuracy": 0.5}


def test_entities_that_do_not_parse_and_unknown_tags_are_refused(tiny_tokenizer: Path):
    good = _dataset(tiny_tokenizer, [("B-A", "I-A", "O")])
    assert Tagging.keys_for(good, good) == {"tags": ["B-A", "I-A", "O"]}
    assert Tagging.criterion({"tags": ["B-A", "O"]}) == "f1"
    assert Tagging.criterion({"tags": ["NOUN", "O"]}) == "word_accuracy"
    for tags, message in [
        (("O", "I-A"), "line 1, word 2: I-A follows O, but an entity must begin with B-A"),
        (("B-B", "I-A", "B-A"), "word 2: I-A follows B-B"),
    ]:
        with pytest.raises(DataError, match=message):
            Tagging.keys_for(_dataset(tiny_tokenizer, [tags]), None)
    with pytest.raises(DataError, match=r"tags that are not in made: B-C"):
        Tagging.keys_for(good, _dataset(tiny_tokenizer, [("B-C",)]))
    with pytest.raises(DataError, match="all words have the tag 'O'"):
        Tagging.keys_for(_dataset(tiny_tokenizer, [("O", "O")]), None)


@pytest.mark.parametrize(("layout", "first"), [("cls_first", 1), ("cls_last", 0), ("document", 1)])
def test_a_word_is_found_at_its_first_token(tiny_tokenizer: Path, layout: str, first: int):
    words = ("Bation", "unbelievable", "x", "thing")
    data = _dataset(tiny_tokenizer, [("NOUN", "VERB", "NOUN", "VERB")], [words])
    task = Tagging(tags=("NOUN", "VERB"), layout=layout, seq_len=64)
    tokenizer = load_tokenizer(tiny_tokenizer)
    (example,) = task.numbered(data)
    batch = task.collator(tokenizer, seed=0)([make_sample(example)])
    lengths = [len(part) for part in example.parts]
    assert max(lengths) > 1
    at = [first + sum(lengths[:i]) for i in range(4)]
    assert batch.targets["word_positions"].tolist() == [at]
    assert [int(batch.inputs.tokens[0, i]) for i in at] == [part[0] for part in example.parts]
    assert batch.targets["tag"].tolist() == [0, 1, 0, 1] and batch.counts == {"tag": 4}
    room = sum(lengths[:3]) + task.token_layout.num_symbols(1)
    short = task.model_copy(update={"seq_len": max(room, 8)})
    if room >= 8:
        cut = short.collator(tokenizer, seed=0)([make_sample(example)])
        assert cut.counts == {"tag": 3} and short.num_cut([example.parts]) == 1
        assert short.predictions(data, [np.eye(2)[[1, 1, 1]]]) == [["VERB", "VERB", "VERB", "NOUN"]]


@pytest.mark.parametrize("kind", ["transformer_xl", "xlnet", "albert", "bert"])
def test_outputs_do_not_depend_on_padding(tmp_path: Path, tiny_dataset: Path, kind: str):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": kind})
    lines = ["Bation O\nis O\nhere B-A\n\nshort B-A\n"] * 2
    for name, content in zip(("train", "valid"), lines, strict=True):
        (tmp_path / f"{name}.conll").write_text(content)
    files = {name: tmp_path / f"{name}.conll" for name in ("train", "valid")}
    config = finetune_config(source, task="tag", **files, name="tuned", runs_dir=tmp_path / "runs")
    data = config.data.open()
    torch.manual_seed(0)
    model = config.build_model(data.tokenizer.vocabulary.size).eval()
    samples = config.objective.evaluation_samples(data.valid, num_tokens=0, num_streams=2, mem_len=0)
    collate = config.objective.collator(data.tokenizer, seed=0)
    both, alone = (collate([samples.sample(step=0, stream=i) for i in which]) for which in ((0, 1), (1,)))
    with torch.no_grad():
        loss, _ = model(both, model.backbone.empty_memory(2, 0))
        single, _ = model(alone, model.backbone.empty_memory(1, 0))
    torch.testing.assert_close(loss.outputs[1:, :1], single.outputs)
    assert loss.scores["tag"].samples.tolist() == [0, 0, 0, 1]
    assert float(loss.sums["tag"]) == pytest.approx(float(loss.scores["tag"].nll.sum()))


@pytest.mark.full
def test_a_tagger_from_the_command_line(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"})
    rng, files = random.Random(0), {}
    tag_of = {"Bation": "B-A", "Tring": "B-B", "is": "O", "Wone": "O"}
    for name, size in {"train": 96, "valid": 40}.items():
        sentences = [[rng.choice(list(tag_of)) for _ in range(rng.randrange(1, 8))] for _ in range(size)]
        files[name] = tmp_path / f"{name}.jsonl"
        made = ({"tokens": words, "tags": [tag_of[word] for word in words]} for words in sentences)
        files[name].write_text("".join(f"{json.dumps(line)}\n" for line in made))
    options = ["--train", files["train"], "--valid", files["valid"], "--name", "tuned", "--runs-dir", tmp_path / "runs"]
    recipe = [*PLAIN, "optimizer.lr=0.01", "max_steps=90", "schedule.warmup_steps=5", "stop.patience=99"]
    out, _ = run("finetune", source.path, "--task", "tag", *options, "--nproc", 2, *recipe)
    folder = tmp_path / "runs" / "tuned"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"f1 {metrics['f1']:.4f}" in out and metrics["f1"] > 0.5
    found = xlpretrain.load(folder, device="cpu").predict([["Bation", "is"], ["Tring"]])
    assert [len(tags) for tags in found] == [2, 1] and {tag for tags in found for tag in tags} <= {"B-A", "B-B", "O"}
    for name in ("said.conll", "said.jsonl", "said.csv"):
        _, err = run("predict", folder, "--input", files["valid"], "--to", tmp_path / name)
        assert f"f1 {metrics['f1']:.4f}" in err
    again, _ = run("predict", folder, "--input", tmp_path / "said.conll")
    assert len(again.splitlines()) == 40
