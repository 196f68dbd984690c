"""Files of questions in the format of SQuAD."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xlpretrain.data.tables.squad import read_squad
from xlpretrain.errors import DataError

CONTEXT = "Émile lives in Paris. He likes Paris."


def _qa(**changes) -> dict:
    asked = {"id": "1", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 15}]}
    return {**asked, **changes}


def _write(path: Path, *asked: dict, context: str = CONTEXT) -> Path:
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(asked)}]}]}
    path.write_text(json.dumps(content))
    return path


def test_answers_are_spans(tmp_path: Path):
    asked = [
        _qa(answers=[{"text": "Paris", "answer_start": 15}, {"text": "in Paris", "answer_start": 12}]),
        _qa(id="2", answers=[], is_impossible=True),
        {"id": "3", "question": "Who?"},
    ]
    found = read_squad(_write(tmp_path / "a.json", *asked))
    assert [(q.id, q.answers, q.texts) for q in found] == [
        ("1", ((15, 20), (12, 20)), ["Paris", "in Paris"]),
        ("2", (), [""]),
        ("3", None, [""]),
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            _qa(answers=[{"text": "Paris", "answer_start": 14}]),
            "'Paris' is not in the context at answer_start 14",
        ),
        (_qa(answers=[{"text": "Paris", "answer_start": 99}]), "'Paris' is not in the context at answer_start 99"),
        (_qa(answers=[{"text": "", "answer_start": 0}]), "the answer '' is not in the context"),
        (_qa(is_impossible=True), "is_impossible is true, but it has answers"),
        (_qa(question=3), "context and question must be strings"),
        ({"id": "1"}, "not in the format of SQuAD \\(no 'question'\\)"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, asked: dict, message: str):
    with pytest.raises(DataError, match=message):
        read_squad(_write(tmp_path / "a.json", asked))


def test_contexts_and_files_are_checked(tmp_path: Path):
    with pytest.raises(DataError, match="question '1': has no context"):
        read_squad(_write(tmp_path / "a.json", _qa(answers=[]), context=" "))
    with pytest.raises(DataError, match="another question has the id '1'"):
        read_squad(_write(tmp_path / "a.json", _qa(), _qa()))
    with pytest.raises(DataError, match="has no questions"):
        read_squad(_write(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(DataError, match="not in the format of SQuAD"):
        read_squad(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_squad(tmp_path / "b.json")
