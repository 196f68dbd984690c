"""Files of multiple-choice questions.

Modules: utf8.py, json_text.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xlpretrain.data.tables.multiple_choice import read_choices
from xlpretrain.errors import DataError


def _read(path: Path, content: str):
    path.write_text(content)
    return [(found.context, found.choices, found.answer) for found in read_choices(path)]


def test_json_lines(tmp_path: Path):
    lines = [
        {"context": "It rains.", "question": "So", "choices": ["run", "stay"], "label": 1},
        {"question": "The _ shines.", "choices": ["sun", "rain"], "label": "A"},
        {"choices": ["a", "b"]},
    ]
    expected = [("It rains.", ("So run", "So stay"), 1), ("", ("The sun shines.", "The rain shines."), 0)]
    expected.append(("", ("a", "b"), None))
    assert _read(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))) == expected
    assert _read(tmp_path / "a.json", json.dumps(lines)) == expected


@pytest.mark.parametrize(
    ("question", "with_choice"),
    [
        ("A _ , a ___.", "A b , a b."),
        ("It is called_.", "It is calledb."),  # as in some questions of RACE
        ("Set max_steps in", "Set max_steps in b"),
        ("Call __init__", "Call __init__ b"),
        ("Set max_steps to _.", "Set max_steps to b."),
    ],
)
def test_an_underscore_in_a_name_is_no_blank(question: str, with_choice: str, tmp_path: Path):
    content = json.dumps({"question": question, "choices": ["a", "b"], "label": 1})
    ((_, (_, chosen), _),) = _read(tmp_path / "a.jsonl", content)
    assert chosen == with_choice


def test_copa(tmp_path: Path):
    line = {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": 0, "idx": 3}
    found = ("It rained.", ("What happened as a result? Wet.", "What happened as a result? Dry."), 0)
    assert _read(tmp_path / "a.jsonl", json.dumps(line)) == [found]


def test_swag(tmp_path: Path):
    content = "video-id,sent1,sent2,ending0,ending1,ending2,label\nx,She sits.,She,stands.,sleeps.,sings.,2\n"
    found = ("She sits.", ("She stands.", "She sleeps.", "She sings."), 2)
    assert _read(tmp_path / "a.csv", content) == [found]


def test_race_is_a_folder(tmp_path: Path):
    for kind, number in (("high", 1), ("middle", 2)):
        (tmp_path / "train" / kind).mkdir(parents=True)
        passage = {
            "article": f"Text {number}.",
            "questions": ["Who?", "The text is _."],
            "options": [["me", "you"], ["short", "long"]],
            "answers": ["B", "A"],
            "id": f"{kind}{number}.txt",
        }
        (tmp_path / "train" / kind / f"{number}.txt").write_text(json.dumps(passage))
    found = [(q.context, q.choices, q.answer) for q in read_choices(tmp_path / "train")]
    assert found[:2] == [
        ("Text 1.", ("Who? me", "Who? you"), 1),
        ("Text 1.", ("The text is short.", "The text is long."), 0),
    ]
    assert len(found) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "has no questions"),
        ("a.jsonl", "[1", "line 1: not JSON"),
        ("a.jsonl", "1", "line 1: expected an object, got 1"),
        ("a.jsonl", '{"choices": ["a"]}', "line 1: expected a list of at least two choices"),
        ("a.jsonl", '{"choices": ["a", 2]}', "must be strings"),
        ("a.jsonl", '{"choices": ["a", "b"], "label": 2}', "the label must be 0 to 1, or A to B, got 2"),
        ("a.jsonl", '{"choices": ["a", "b"], "label": "C"}', "the label must be 0 to 1, or A to B, got 'C'"),
        (
            "a.jsonl",
            '{"choices": ["a", "b"]}\n{"choices": ["a", "b", "c"]}',
            r"a\.jsonl: line 2: has 3 choices, but .*line 1 has 2; all questions must have equally many",
        ),
        ("a.jsonl", '{"premise": "a", "question": "why"}', "question must be cause or effect, got 'why'"),
        ("a.csv", "text,label\na,1\n", "expected the columns sent1, sent2, ending0"),
    ],
)
def test_what_does_not_parse_is_refused(tmp_path: Path, name: str, content: str, message: str):
    with pytest.raises(DataError, match=message):
        _read(tmp_path / name, content)


def test_a_damaged_file_of_race_is_named(tmp_path: Path):
    (tmp_path / "race").mkdir()
    (tmp_path / "race" / "1.txt").write_text(json.dumps({"article": "a", "questions": ["b"], "options": []}))
    with pytest.raises(DataError, match=r"1\.txt: questions, options and answers differ in number"):
        read_choices(tmp_path / "race")
    with pytest.raises(DataError, match="no such file"):
        read_choices(tmp_path / "none.jsonl")
