"""Files of suites as they are distributed, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_suites import GLUE, write_babylm, write_blimp, write_glue, write_pairs

from launcher.suite.checks import prepare_files
from launcher.suite.definition import FinetuneTask, PairsTask, load_suite
from launcher.suite.jobs import prepared
from launcher.suite.pairs import check_pairs
from launcher.suite.sources import pair_files, prepare, read_rows
from xlpretrain.data.tables.text_tables import read_table
from xlpretrain.errors import DataError


def test_glue_is_read_as_it_is_distributed(tmp_path: Path):
    config = load_suite("glue", data=write_glue(tmp_path / "glue"))
    notes = []
    for task in config.tasks:
        assert isinstance(task, FinetuneTask)
        notes += list(prepare_files(task, tmp_path))
        ours = prepared(task, tmp_path)
        for path in (ours.train, ours.valid, *ours.parts.values()):
            table = read_table(path)
            assert table.columns == (*ours.text, ours.label) and len(table) == 6
            assert all(table.column("text")) and table.column("text")[1].startswith('"')
        labels = set(table.column("label"))
        expected = {"mnli": 3, "stsb": 6}.get(task.name, 2)
        assert len(labels) == expected, task.name
    assert notes == [f"{tmp_path}/glue/QQP/train.tsv: 1 rows with too few or too many fields are left out"]
    assert len(config.tasks) == len(GLUE)


def test_babylm_is_read_as_it_is_distributed(tmp_path: Path):
    config = load_suite("babylm", data=write_babylm(tmp_path / "full_eval"))
    for task in config.tasks:
        if isinstance(task, PairsTask):
            assert check_pairs(task) == {"blimp": 6, "supplement": 4}[task.name]
            continue
        assert isinstance(task, FinetuneTask) and list(prepare_files(task, tmp_path)) == []
        ours = prepared(task, tmp_path)
        assert len(read_table(ours.train).columns_of([*ours.text, ours.label])) == 4
    first = json.loads((tmp_path / "full_eval/glue_filtered/multirc.train.jsonl").read_text().splitlines()[0])
    made = json.loads((tmp_path / "data/multirc-train.jsonl").read_text().splitlines()[0])
    asked = f"Question: {first['question']} Answer: {first['answer']}"
    assert made == {"text": asked, "text_b": first["paragraph"], "label": "0"}
    first = json.loads((tmp_path / "full_eval/glue_filtered/wsc.valid.jsonl").read_text().splitlines()[0])
    made = json.loads((tmp_path / "data/wsc-valid.jsonl").read_text().splitlines()[0])
    assert made["text"] == f'Does "{first["span2_text"]}" refer to "{first["span1_text"]}" in this passage?'


def test_blimp_is_found_from_the_repository_and_from_its_data(tmp_path: Path):
    write_blimp(tmp_path)
    names = ["adjunct_island", "passive_1", "wh_island"]
    assert [path.stem for path in pair_files(tmp_path)] == names
    assert [path.stem for path in pair_files(tmp_path / "data")] == names
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"has no \.jsonl files"):
        pair_files(empty)


def test_two_files_of_one_name_are_refused(tmp_path: Path):
    for name in ("a", "b"):
        write_pairs(tmp_path / name / "same.jsonl", 1)
    with pytest.raises(DataError, match=r"several files are named same\.jsonl"):
        pair_files(tmp_path)


def test_a_file_that_is_no_plain_tsv_is_refused(tmp_path: Path):
    bad = tmp_path / "bad.tsv"
    bad.write_text("a\tb\n" + "1\n2\n3\n" + "x\ty\n" * 10)
    with pytest.raises(DataError, match=r"3 of 13 rows, the first on line 2, do not have 2 fields .* \(a, b\)"):
        read_rows(bad, plain_tsv=True)
    bad.write_text("")
    with pytest.raises(DataError, match="has no rows"):
        read_rows(bad, plain_tsv=True)


def test_a_missing_column_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"a.jsonl: line 2: no column 'label'; the columns are: text"):
        prepare(path, tmp_path / "out.jsonl", text=["text"], label="label")
    with pytest.raises(DataError, match="no column 'nothing'"):
        prepare(path, tmp_path / "out.jsonl", text=["{nothing}?"], label="label")
    path.write_text('{"text": \n')
    with pytest.raises(DataError, match="line 1: not JSON"):
        read_rows(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match=r"line 1: expected an object, got \[1\]"):
        read_rows(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl"]
