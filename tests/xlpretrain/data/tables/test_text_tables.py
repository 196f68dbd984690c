"""Files of texts: what is read, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from xlpretrain.data.tables.text_tables import read_table
from xlpretrain.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", 'text,label\n"a, b\nc",1\nd,2\n', [("a, b\nc", "1"), ("d", "2")]),
        ("a.csv", "\ufefftext,label\nx,1\n", [("x", "1")]),
        ("a.tsv", "text\tlabel\nx, y\t1\n", [("x, y", "1")]),
        ("a.csv", 'text;label\nx, y;1\n"a; b";2\n', [("x, y", "1"), ("a; b", "2")]),
        ("a.csv", "text\nx; y\n", [("x; y",)]),
        ("a.csv", "text , label\nx,1\n", [("x", "1")]),
        ("a.tsv", "text,label\nx,1\n", [("x", "1")]),
        ("a.json", '[{"text": "x", "label": 1},\n {"label": 0, "text": "y"}]', [("x", "1"), ("y", "0")]),
        ("a.json", '{"text": "x"}\n{"text": "y"}\n', [("x",), ("y",)]),
        ("a.txt", "x\r\ny\r\n", [("x",), ("y",)]),
        ("a.jsonl", '{"text": "x", "label": 1}\n\n{"label": true, "text": "y"}\n', [("x", "1"), ("y", "True")]),
        ("a.txt", "x\n\ny\n", [("x",), ("y",)]),
    ],
)
def test_each_format_by_its_name(tmp_path: Path, name: str, content: str, rows: list[tuple[str, ...]]):
    (tmp_path / name).write_text(content)
    assert [tuple(row) for row in read_table(tmp_path / name).rows] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "is empty"),
        ("a.csv", "text,label\nx,1\ny\n", r"line 3: has 1 fields, expected 2 \(text, label\)"),
        ("a.csv", 'text,label\nx,"1\n', "line 2: unexpected end of data"),
        ("a.csv", "text,text\nx,1\n", "more than one column is called text"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', "line 2: not JSON"),
        ("a.jsonl", '{"text": "x"}\n["y"]\n', "line 2: expected an object"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', "line 2: no text or number for text"),
        ("a.txt", " \n", "is empty"),
        ("a.json", '{"text": {"0": "x"}}', r"is one JSON object; expected an array of objects.*orient='records'"),
        ("a.json", '[{"text": "x"}, 3]', "element 2: expected an object .* got 3"),
        ("a.json", '[{"text": "x"}', "not JSON"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": "\\ud800"}\n',
            "line 2: not Unicode text: a lone surrogate at character 0",
        ),
        ("a.xlsx", "PK", r"is a spreadsheet; convert it to \.csv, \.tsv, \.json, \.jsonl or one text per line"),
        ("a.csv.gz", "", "is compressed"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_null_is_blank_where_a_column_may_be_missing(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "label": null}\n{"text": "y", "label": NaN}\n{"text": "z", "label": 0}\n')
    assert read_table(path, optional=["label"]).column("label") == ["", "", "0"]
    with pytest.raises(DataError, match="line 1: no text or number for label"):
        read_table(path)
    path.write_text('{"text": NaN, "label": 1}\n')
    with pytest.raises(DataError, match="line 1: no text or number for text"):
        read_table(path, optional=["label"])


def test_no_file_no_text_and_no_such_column(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"text\n\xff\n")
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 5\)"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text,mark\nx,1\n")
    with pytest.raises(DataError, match="has no column 'label'; it has text, mark"):
        read_table(tmp_path / "a.csv").column("label")
