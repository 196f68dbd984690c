"""The example that makes tasks from documentation."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_manual import make_sdist
from repository import ROOT

from xlpretrain.data.tables.multiple_choice import read_choices
from xlpretrain.data.tables.squad import read_squad
from xlpretrain.data.tables.tagged_words import read_tagged
from xlpretrain.data.tables.text_tables import read_table

SCRIPT = ROOT / "examples" / "documentation_tasks.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("documentation_tasks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["documentation_tasks"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["documentation_tasks"]


@pytest.mark.parametrize(
    ("marked", "text", "entities"),
    [
        ("Call :func:`~a.b.render()` now.", "Call render now.", [("render", "function")]),
        ("See :class:`the form <a.Form>`.", "See the form.", [("the form", "class")]),
        ("A :py:mod:`.views` and ``DEBUG``.", "A views and DEBUG.", [("views", "module")]),
        ("A *b* **c** `d <http://e>`_ :doc:`/f` [1]_.", "A b c d /f.", []),
    ],
)
def test_markup_is_removed_and_roles_become_entities(example, marked, text, entities):
    (sentence,) = example.sentences(marked)
    assert sentence.text == text
    assert [(text[e.start : e.stop], e.kind) for e in sentence.entities] == entities


def test_code_headings_and_lists_of_fields_are_no_paragraphs(example):
    source = "Title\n=====\n\nSome text::\n\n    Code is here.\n\nMore text. And\nmore.\n\n* An item of\n  a list.\n"
    found = [[sentence.text for sentence in paragraph] for paragraph in example.paragraphs(source)]
    assert found == [["Some text:"], ["More text.", "And more."], ["An item of a list."]]


def test_the_files_are_those_of_the_tasks_and_the_same_each_time(tmp_path: Path):
    sdist = make_sdist(tmp_path / "Django-1.0.tar.gz")
    made = []
    for name in ("first", "second"):
        folder = tmp_path / name
        command = [sys.executable, str(SCRIPT), "--sdist", str(sdist), "--out", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1]
    folder = tmp_path / "first"
    corpus = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert len(corpus) == 28
    for split in ("train", "valid", "test"):
        tagged = read_tagged(folder / f"tag-{split}.conll", words="tokens", tags="tags")
        assert {tag for sentence in tagged for tag in sentence.tags or ()} >= {"O", "B-class", "B-setting"}
        questions = read_squad(folder / f"answer-{split}.json")
        assert {bool(question.answers) for question in questions} == {True, False}
        assert all("_" in question.question for question in questions)
        choices = read_choices(folder / f"choose-{split}.jsonl")
        assert {len(question.choices) for question in choices} == {4}
        table = read_table(folder / f"regress-{split}.csv")
        assert all(0 <= float(value) <= 5 for value in table.column("label"))
        sentences = [first for (first,) in table.columns_of(["first"])]
        assert all(any(sentence in text for text in corpus) == (split == "train") for sentence in sentences)
