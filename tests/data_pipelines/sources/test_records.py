"""Records that are no text, byte order marks, and columns of one name."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from read_source import read

from data_pipelines.sources.config import (
    HuggingFaceSource,
    JsonlSource,
    ParquetSource,
    Source,
    TextSource,
    WebdatasetSource,
)
from data_pipelines.sources.records import BadRecord, cut_into_units, read_pieces
from xlpretrain.errors import DataError

BOM = b"\xef\xbb\xbf"


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read_skipping(source: Source) -> tuple[list[str], list[str]]:
    """The documents of a source, and what is wrong with its bad records."""
    bad: list[BadRecord] = []
    units = cut_into_units([source], [source.find_files()])
    documents = [d for unit in units for d in read_pieces(source, unit.pieces, skip_bad=bad.append)]
    return documents, [f"{record.place()}: {record.problem}" for record in bad]


def test_a_byte_order_mark_is_no_text_wherever_a_record_begins_with_one(tmp_path: Path):
    write_tar(tmp_path / "1.tar", {"0.json": BOM + b'{"text": "one"}', "1.txt": BOM + b"two"})
    assert read(WebdatasetSource(path=str(tmp_path / "1.tar"), member="json")) == ["one"]
    assert read(WebdatasetSource(path=str(tmp_path / "1.tar"))) == ["two"]
    line = BOM + b'{"text": "three"}\n'
    (tmp_path / "2.jsonl").write_bytes(line + line)  # two files that were put together
    assert read(JsonlSource(path=str(tmp_path / "2.jsonl"))) == ["three", "three"]


def test_columns_of_one_name_are_refused_if_they_hold_the_text(tmp_path: Path):
    import pyarrow
    from pyarrow import ipc, parquet

    twice = pyarrow.table([["a"], ["b"], ["c"]], names=["text", "text", "body"])
    parquet.write_table(twice, tmp_path / "1.parquet")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with ipc.new_stream(folder / "data.arrow", twice.schema) as stream:
        stream.write_table(twice)
    for source in (ParquetSource(path=str(tmp_path / "1.parquet")), HuggingFaceSource(path=str(folder))):
        with pytest.raises(DataError, match="2 columns are called 'text'; rename all but the one to read"):
            read(source)
        assert read(source.model_copy(update={"field": "body"})) == ["c"]


def test_bad_records_can_be_skipped_in_sources_of_every_type(tmp_path: Path):
    good, bad = [{"text": "one"}, {"text": "two"}], [{"text": None}, {"body": "x"}, {"text": "\ud800"}, ["text"]]
    rows = [json.dumps(row).encode() for row in (good[0], *bad, good[1])]
    (tmp_path / "1.jsonl").write_bytes(b"\n".join([*rows[:-1], b'{"text": "\xff"}', b"{cut", rows[-1]]))
    documents, problems = read_skipping(JsonlSource(path=str(tmp_path / "1.jsonl")))
    assert documents == ["one", "two"]
    expected = [
        "line 2: the field 'text' holds a NoneType, expected text",
        "line 3: no field 'text'; the fields there are: body",
        "line 4: not Unicode text: a lone surrogate at character 0 of 'text'",
        "line 5: expected a JSON object with a field 'text', got a list",
        "line 6: not UTF-8: byte 0xff at offset 10",
        "line 7: not JSON",
    ]
    assert len(problems) == len(expected)
    for problem, beginning in zip(problems, expected, strict=True):
        assert problem.startswith(f"{tmp_path / '1.jsonl'}, {beginning}")
    write_tar(
        tmp_path / "1.tar", {"0.txt": b"one", "1.txt": b"\xff", "2.txt": b"two", "0.json": b"{", "1.json": rows[0]}
    )
    assert read_skipping(WebdatasetSource(path=str(tmp_path / "1.tar")))[0] == ["one", "two"]
    assert read_skipping(WebdatasetSource(path=str(tmp_path / "1.tar"), member="json"))[0] == ["one"]
    (tmp_path / "a.txt").write_bytes(b"one\n\n\xff\n\ntwo")
    assert read_skipping(TextSource(path=str(tmp_path / "a.txt"), documents="blank_lines"))[0] == ["one", "two"]
    assert read_skipping(TextSource(path=str(tmp_path / "a.txt")))[0] == []


def test_null_rows_of_a_table_can_be_skipped(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["one", None, "two"]}), tmp_path / "1.parquet")
    documents, problems = read_skipping(ParquetSource(path=str(tmp_path / "1.parquet")))
    assert documents == ["one", "two"]
    assert problems == [f"{tmp_path / '1.parquet'}, row 1: the field 'text' holds a NoneType, expected text"]


def test_what_damages_a_file_ends_the_build_nevertheless(tmp_path: Path):
    (tmp_path / "1.jsonl.gz").write_bytes(b"neither")
    with pytest.raises(DataError, match="damaged or truncated"):
        read_skipping(JsonlSource(path=str(tmp_path / "1.jsonl.gz")))
