"""Files that a task cannot learn from: each is refused with its place and its fault, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import refused
from imported_runs import make_run

from xlpretrain.errors import XLPretrainError
from xlpretrain.finetune.results import finetune_config
from xlpretrain.run_dir.layout import RunDir


def _lines(*rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _squad(context: Any = "The sky is blue", **keys: Any) -> str:
    asked = {"id": "q1", "question": "Which?", "answers": [{"text": "sky", "answer_start": 4}], **keys}
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [asked]}]}]})


GOOD: dict[str, tuple[str, str]] = {
    "classify": ("data.csv", "text,label\nan apple,yes\na pear,no\n"),
    "multilabel": ("data.csv", "text,label\nan apple,a|b\na pear,b\n"),
    "regress": ("data.csv", "text,label\nan apple,1.5\na pear,2\n"),
    "tag": ("data.conll", "He O\nsees O\nAnn B-PER\nLee I-PER\n\nYes O\n"),
    "choose": ("data.jsonl", _lines({"context": "x", "choices": ["a", "b"], "label": 0})),
    "answer": ("data.json", _squad()),
}
"""A file for each task that can be learned."""

CHOICE = {"context": "x", "choices": ["a", "b"], "label": 0}
CASES: list[tuple[str, str, str | bytes, str]] = [
    # every task: empty files, broken encodings
    *((task, name, "", "has no (rows|questions|sentences)|not JSON") for task, (name, _) in GOOD.items()),
    *((task, name, "text\tlabel\n".encode("utf-16"), "not UTF-8 text") for task, (name, _) in GOOD.items()),
    *((task, name, "café,yes\n".encode("latin-1"), r"not UTF-8 text \(byte 3\)") for task, (name, _) in GOOD.items()),
    # tables
    ("classify", "data.csv", "text,label\n", "has no rows"),
    ("classify", "data.csv", "text,label\na,yes\nb\n", r"line 3: has 1 fields, expected 2 \(text, label\)"),
    ("classify", "data.csv", 'text,label\n"a,yes\nb,no\n', "line 2: unexpected end of data"),
    ("classify", "data.csv", "text,mark\na,yes\nb,no\n", "no column 'label'|unknown text column"),
    ("classify", "data.csv", "text,label,label\na,yes,no\n", "several columns are named label"),
    ("classify", "data.csv", "a,b,c,label\nx,y,z,yes\n", "unknown text column; besides 'label' it has a, b, c"),
    ("classify", "data.csv", "text,label\na,yes\nb,\n", r"line 3: no label \(label\)"),
    ("classify", "data.csv", "text,label\na,yes\nb,yes\n", "all rows have the label 'yes'"),
    ("classify", "data.parquet", "PAR1", "is a table in Parquet; convert it"),
    ("classify", "data.jsonl", "[1, 2]\n", "line 1: expected an object"),
    ("classify", "data.jsonl", '{"text": "a", "label": \n', "line 1: not JSON"),
    (
        "classify",
        "data.jsonl",
        _lines({"text": "a", "label": "x"}, {"text": "b"}),
        "line 2: no text or number for label",
    ),
    ("classify", "data.jsonl", _lines({"text": {"a": 1}, "label": "x"}), "line 1: no text or number for text"),
    ("classify", "data.jsonl", _lines({"text": "a", "label": ["x"]}), r"no text or number for label \(got a list\)"),
    ("classify", "data.jsonl", '{"text": "\\ud800", "label": "x"}\n', "line 1: invalid Unicode: a lone surrogate"),
    ("multilabel", "data.csv", "text,label\na,x|y\nb,\n", r"line 3: no labels \(label\); add them, remove the row"),
    ("multilabel", "data.csv", "text,label\na,x|y\nb,[x\n", "line 3: expected a list of labels"),
    ("multilabel", "data.jsonl", _lines({"text": "a", "label": ["x", 1.5]}), "line 1: expected a list of labels"),
    ("multilabel", "data.jsonl", _lines({"text": "a", "label": {"x": 1}}), "line 1: no text or number for label"),
    ("regress", "data.csv", "text,label\na,1\nb,high\n", "line 3: the label must be a finite number, got 'high'"),
    ("regress", "data.csv", "text,label\na,1\nb,inf\n", "line 3: the label must be a finite number, got 'inf'"),
    ("regress", "data.csv", "text,label\na,1\nb,NaN\n", r"line 3: no label \(label\), but NaN"),
    ("regress", "data.csv", 'text,label\na,1\nb,"1,5"\n', "line 3: the label must be a finite number, got '1,5'"),
    ("regress", "data.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": NaN}\n', "line 2: no text or number"),
    ("regress", "data.jsonl", _lines({"text": "a", "label": True}), "line 1: the label must be a finite number"),
    # tags
    ("tag", "data.conll", "He O\nAnn I-PER\n", "sentence at line 1, word 2: I-PER follows O, but an entity must begin"),
    ("tag", "data.conll", "He O\nAnn B-PER\nLee I-LOC\n", "word 3: I-LOC follows B-PER"),
    ("tag", "data.conll", "He O\nAnn B-\n", "the tag B- lacks the type of the entity"),
    ("tag", "data.conll", "He O\nyes O\n", "all words have the tag 'O'"),
    ("tag", "data.conll", "He\nsees\n", "line 1: the sentence has no tags"),
    ("tag", "data.conll", "He O\nsees\n", "line 1: the sentence has 2 words but 1 tags"),
    ("tag", "data.conllu", "1\tHe\tPRON\n", "line 1: has 3 columns, expected the 10 of CoNLL-U"),
    ("tag", "data.jsonl", _lines({"tokens": ["a", "b"], "tags": ["O"]}), "line 1: the sentence has 2 words but 1 tags"),
    (
        "tag",
        "data.jsonl",
        _lines({"tokens": "a b", "tags": ["O", "O"]}),
        "'tokens' and 'tags' must be lists of strings",
    ),
    ("tag", "data.jsonl", _lines({"tokens": ["a"], "tags": [1]}), "'tokens' and 'tags' must be lists of strings"),
    (
        "tag",
        "data.jsonl",
        _lines({"tokens": ["a", "b"], "tags": ["O", " "]}),
        "line 1: word 2 of the sentence has no tag",
    ),
    ("tag", "data.jsonl", _lines({"words": ["a"]}), "line 1: expected an object with the keys 'tokens' and 'tags'"),
    # choices
    (
        "choose",
        "data.jsonl",
        _lines(CHOICE, {**CHOICE, "choices": ["a", "b", "c"]}),
        "line 2: has 3 choices, but .* has 2",
    ),
    ("choose", "data.jsonl", _lines({**CHOICE, "choices": ["a"]}), "expected a list of at least two choices"),
    ("choose", "data.jsonl", _lines({**CHOICE, "choices": "ab"}), "expected a list of at least two choices"),
    ("choose", "data.jsonl", _lines({**CHOICE, "choices": ["a", 1]}), "context, question and choices must be strings"),
    ("choose", "data.jsonl", _lines({**CHOICE, "context": 3}), "context, question and choices must be strings"),
    ("choose", "data.jsonl", _lines({**CHOICE, "label": 2}), "the label must be 0 to 1, or A to B, got 2"),
    ("choose", "data.jsonl", _lines({**CHOICE, "label": "first"}), "the label must be 0 to 1, or A to B, got 'first'"),
    ("choose", "data.jsonl", _lines({**CHOICE, "label": 0.5}), "the label must be 0 to 1, or A to B, got 0.5"),
    ("choose", "data.jsonl", _lines({**CHOICE, "label": None}), "the question has no label"),
    ("choose", "data.jsonl", "not json\n", "line 1: not JSON"),
    ("choose", "data.jsonl", _lines({"premise": "x", "choice1": "a", "choice2": "b", "label": 0}), "cause or effect"),
    ("choose", "data.csv", "sent1,sent2,label\na,b,0\n", "expected the columns sent1, sent2, ending0, ending1"),
    # answers
    ("answer", "data.json", _squad(answers=[{"text": "sky", "answer_start": 5}]), "'sky' is not in the context at"),
    ("answer", "data.json", _squad(answers=[{"text": "blue", "answer_start": 99}]), "'blue' is not in the context at"),
    ("answer", "data.json", _squad(answers=[{"text": "blue", "answer_start": -4}]), "'blue' is not in the context at"),
    ("answer", "data.json", _squad(answers=[{"text": "", "answer_start": 0}]), "'' is not in the context at"),
    ("answer", "data.json", _squad(answers=[{"text": "sky"}]), "expected an answer with text and answer_start"),
    ("answer", "data.json", _squad(answers=["sky"]), 'expected an answer with text and answer_start, got "sky"'),
    ("answer", "data.json", _squad(answers={"text": ["sky"]}), "answers must be a list, got {"),
    ("answer", "data.json", _squad(answers=None), "question 'q1': answers must be a list, got null"),
    ("answer", "data.json", _squad(context=" "), "question 'q1': has no context"),
    ("answer", "data.json", _squad(context=None), "question 'q1': context and question must be strings"),
    ("answer", "data.json", _squad(is_impossible=True), "is_impossible is true, but it has answers"),
    ("answer", "data.json", json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}), "no 'context'"),
    ("answer", "data.json", "[]", "not in the format of SQuAD"),
    ("answer", "data.json", json.dumps({"data": []}), "has no questions"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> RunDir:
    """A run to fine-tune."""
    return make_run(tmp_path_factory.mktemp("bad") / "runs", tiny_dataset, {"type": "bert", "max_positions": 80})


def _recipe(source: RunDir, task: str, train: Path, valid: Path) -> None:
    finetune_config(source, task=task, train=train, valid=valid, name="tuned", runs_dir=source.path.parent)


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize("task", GOOD)
def test_good_files_are_accepted(tmp_path: Path, source: RunDir, task: str):
    good = _write(tmp_path / "good", *GOOD[task])
    _recipe(source, task, good, good)


@pytest.mark.parametrize(
    ("task", "name", "content", "message"), CASES, ids=[f"{case[0]}-{number}" for number, case in enumerate(CASES)]
)
def test_a_bad_file_is_refused(
    tmp_path: Path, source: RunDir, task: str, name: str, content: str | bytes, message: str
):
    """Whether it is the training file or the held-out one."""
    good, bad = _write(tmp_path / "good", *GOOD[task]), _write(tmp_path / "bad", name, content)
    with pytest.raises(XLPretrainError, match=message) as found:
        _recipe(source, task, bad, bad)
    assert str(bad) in str(found.value)
    if bad.suffix == good.suffix and "all " not in message and "unknown text" not in message:
        with pytest.raises(XLPretrainError) as found:
            _recipe(source, task, good, bad)
        assert str(bad) in str(found.value)
    assert not (source.path.parent / "tuned").exists()


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("classify", "data.csv", "text,label\nx,maybe\n", "labels that are not in .*: 'maybe'"),
        ("multilabel", "data.csv", "text,label\nx,a|z\n", "labels that are not in .*: 'z'"),
        ("tag", "data.conll", "x B-ORG\n", "tags that are not in .*: B-ORG"),
        ("choose", "data.jsonl", _lines({**CHOICE, "choices": ["a", "b", "c"]}), "have 3 choices, expected 2"),
    ],
)
def test_what_only_the_held_out_file_has_is_refused(
    tmp_path: Path, source: RunDir, task: str, name: str, content: str, message: str
):
    good, bad = _write(tmp_path / "good", *GOOD[task]), _write(tmp_path / "bad", name, content)
    with pytest.raises(XLPretrainError, match=message):
        _recipe(source, task, good, bad)


def test_races_folder_is_checked(tmp_path: Path, source: RunDir):
    for number, (content, message) in enumerate(
        [
            ({"article": "x", "questions": 3, "options": []}, "questions must be a list, got 3"),
            ({"article": "x", "questions": ["a"], "options": []}, "questions, options and answers differ in number"),
            ({"article": "x"}, "expected an object with article, questions, options"),
        ]
    ):
        folder = _write(tmp_path / str(number), "1.txt", json.dumps(content)).parent
        with pytest.raises(XLPretrainError, match=message):
            _recipe(source, "choose", folder, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(XLPretrainError, match="has no questions"):
        _recipe(source, "choose", tmp_path / "empty", tmp_path / "empty")


def test_the_command_says_it_and_writes_nothing(tmp_path: Path, source: RunDir):
    bad = _write(tmp_path, "data.csv", "text,label\na,1\nb,high\n")
    options = ["--train", bad, "--valid", bad, "--name", "tuned", "--runs-dir", tmp_path / "new"]
    err = refused("finetune", source.path, "--task", "regress", *options)
    assert f"{bad}: line 3: the label must be a finite number, got 'high'" in err
    assert not (tmp_path / "new").exists()
