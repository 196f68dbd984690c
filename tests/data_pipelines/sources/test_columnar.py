"""Columns of every type, and what they hold that is not text."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet
from read_source import read

from data_pipelines.sources.config import HuggingFaceSource, ParquetSource
from data_pipelines.sources.records import BadRecord, read_pieces
from xlpretrain.errors import DataError

Write = Callable[[Path, pa.Array], ParquetSource | HuggingFaceSource]


def write_parquet(folder: Path, column: pa.Array) -> ParquetSource:
    """A Parquet file with a column `text`."""
    parquet.write_table(pa.table({"text": column}), folder / "1.parquet")
    return ParquetSource(path=str(folder / "1.parquet"))


def write_arrow(folder: Path, column: pa.Array) -> HuggingFaceSource:
    """A folder as `save_to_disk` leaves it, with a column `text`."""
    (folder / "state.json").write_text('{"_data_files": [{"filename": "1.arrow"}]}')
    table = pa.table({"text": column})
    with ipc.new_stream(folder / "1.arrow", table.schema) as stream:
        stream.write_table(table)
    return HuggingFaceSource(path=str(folder))


def not_utf8() -> pa.Array:
    """Three strings, of which the second holds other bytes."""
    data, ends = b"one\xff\xfethree", [0, 3, 5, 10]
    offsets = pa.py_buffer(b"".join(end.to_bytes(4, "little") for end in ends))
    return pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(data)])


WRITERS = pytest.mark.parametrize("write", [write_parquet, write_arrow])


@WRITERS
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_type_of_text_is_read(write: Write, kind: pa.DataType, tmp_path: Path):
    assert read(write(tmp_path, pa.array(["one", "zwei\nö"], kind))) == ["one", "zwei\nö"]


@WRITERS
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_that_is_not_utf8_is_named_by_file_and_row(write: Write, kind: pa.DataType, tmp_path: Path):
    source = write(tmp_path, not_utf8().cast(kind))
    with pytest.raises(DataError, match=r"1\.(parquet|arrow), row 1: the field 'text' is not UTF-8: byte 0xff at off"):
        read(source)
    bad: list[BadRecord] = []
    texts = list(read_pieces(source, [(file.path, 0, -1) for file in source.find_files()], skip_bad=bad.append))
    assert texts == ["one", "three"] and len(bad) == 1


def test_a_dictionary_that_is_not_utf8_is_named(tmp_path: Path):
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), not_utf8())
    with pytest.raises(DataError, match=r"1\.arrow, row 1: the field 'text' is not UTF-8: byte 0xff"):
        read(write_arrow(tmp_path, column))
    with pytest.raises(DataError, match=r"1\.parquet: cannot be read as Parquet: Invalid UTF8 payload"):
        read(write_parquet(tmp_path, column))


@WRITERS
@pytest.mark.parametrize(
    "kind",
    [
        pa.int64(),
        pa.float16(),
        pa.bool_(),
        pa.decimal128(5, 2),
        pa.date32(),
        pa.time64("us"),
        pa.timestamp("ns"),
        pa.timestamp("ms", "Nowhere/None"),
        pa.duration("s"),
        pa.binary(),
        pa.binary(2),
        pa.list_(pa.string()),
        pa.struct({"text": pa.string()}),
        pa.map_(pa.string(), pa.string()),
        pa.dictionary(pa.int8(), pa.int64()),
    ],
    ids=str,
)
def test_columns_of_other_types_are_refused_by_their_names(write: Write, kind: pa.DataType, tmp_path: Path):
    column = pa.array([None, None], kind)
    with pytest.raises(DataError, match=r"1\.(parquet|arrow): the field 'text' holds .*, expected text"):
        read(write(tmp_path, column))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([], "expected a list '_data_files'"),
        ({"files": []}, "expected a list '_data_files'"),
        ({"_data_files": {"filename": "a"}}, "expected a list '_data_files'"),
        ({"_data_files": ["a"]}, "expected a list '_data_files'"),
        ({"_data_files": [{"name": "a"}]}, "this file of the dataset is missing"),
    ],
)
def test_a_saved_dataset_of_another_form_is_refused(state: object, message: str, tmp_path: Path):
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=message):
        read(HuggingFaceSource(path=str(tmp_path)))
    (tmp_path / "dataset_dict.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="expected a list 'splits', as `save_to_disk` writes it"):
        read(HuggingFaceSource(path=str(tmp_path)))
