"""Files of short texts: CSV and TSV with a header, JSON, or one text per line. Torch-free."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlpretrain.data.tables.separated_values import read_separated
from xlpretrain.data.tokenizers.base import lone_surrogate
from xlpretrain.errors import DataError

TEXT = "text"
"""The column of a file with one text per line."""

Numbered = list[tuple[int, tuple[str, ...]]]
"""Rows, each with the number of the line (of a JSON array: of the element) where it begins."""

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_REFUSED = {
    ".parquet": "a table in Parquet",
    ".arrow": "a table in Arrow",
    ".feather": "a table in Arrow",
    ".xlsx": "a spreadsheet",
    ".xls": "a spreadsheet",
    ".ods": "a spreadsheet",
    ".xml": "XML",
    ".html": "HTML",
    ".yaml": "YAML",
    ".yml": "YAML",
    ".gz": "compressed",
    ".zst": "compressed",
    ".xz": "compressed",
    ".bz2": "compressed",
    ".zip": "compressed",
}


@dataclass(frozen=True)
class Table:
    """Rows with named columns. name: the file, for messages. line_numbers: where in the file each row begins."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    line_numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, column: str) -> list[str]:
        """The values of one column. Raises `DataError` if there is no such column."""
        if column not in self.columns:
            raise DataError(f"{self.name}: has no column {column!r}; it has {', '.join(self.columns)}")
        index = self.columns.index(column)
        return [row[index] for row in self.rows]

    def columns_of(self, columns: Sequence[str]) -> list[tuple[str, ...]]:
        """The values of some columns, row by row. Raises `DataError`."""
        return list(zip(*(self.column(column) for column in columns), strict=True))


def refuse_same_file(data: Path | None, to: Path | None) -> None:
    """Raise `DataError` if the file that is to be written is the one that is read."""
    if data is not None and to is not None and data.exists() and to.exists() and data.samefile(to):
        raise DataError(f"{to}: is the file that is read (--input); name another one to write (--to)")


def is_separated(path: Path | None) -> bool:
    """Tell whether a file's name says that it holds separated values."""
    return path is not None and path.suffix.lower() in _DELIMITERS


def read_table(path: Path | None, *, columns: Sequence[str] = (), optional: Sequence[str] = ()) -> Table:
    """Read a file by the ending of its name: .csv, .tsv, .json, .jsonl; others, and standard input, have a text a line.

    `read_separated` says how separators and quotes are told. Blanks around column names are dropped.

    Args:
        path: the file; None: standard input.
        columns: names for the columns of a .csv or .tsv without a header (default: its first line is the header).
        optional: columns that may be null or NaN in JSON, which is then blank.

    Raises:
        DataError: the file cannot be read, has no rows, one that is unlike the others, or is of another format.
    """
    name = "standard input" if path is None else str(path)
    kind = path.suffix.lower() if path is not None else ""
    if kind in _REFUSED:
        raise DataError(
            f"{name}: is {_REFUSED[kind]}; expected .csv, .tsv, .json, .jsonl or a text per line: convert it"
        )
    content = _read_text(path, name)
    rows: Numbered
    if kind in _DELIMITERS:
        rows = read_separated(content, _DELIMITERS[kind], name)
        header = tuple(columns)
        if not columns and rows:
            header, rows = tuple(column.strip() for column in rows[0][1]), rows[1:]
    elif kind in (".json", ".jsonl", ".ndjson"):
        header, rows = _read_objects(content, name, may_be_array=kind == ".json", optional=optional)
    else:
        header = (TEXT,)
        rows = [(n, (line.removesuffix("\r"),)) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    _check(name, header, rows)
    return Table(name, header, [values for _, values in rows], [line for line, _ in rows])


def _read_text(path: Path | None, name: str) -> str:
    try:
        return (sys.stdin.buffer.read() if path is None else path.read_bytes()).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start})") from None


def _read_objects(
    content: str, name: str, *, may_be_array: bool, optional: Sequence[str]
) -> tuple[tuple[str, ...], Numbered]:
    """The keys and the values of JSON objects, one per line or in one array. All must have the keys of the first."""
    if may_be_array and content.lstrip()[:1] == "[":
        values = _parse(content, name)
        objects = [(number, value, f"{name}: element {number}") for number, value in enumerate(values, 1)]
    elif may_be_array and _is_one_object(content):
        raise DataError(
            f"{name}: is one JSON object; expected an array of objects, or one object per line (pandas:"
            " to_json(orient='records'))"
        )
    else:
        lines = ((n, line, f"{name}: line {n}") for n, line in enumerate(content.split("\n"), 1) if line.strip())
        objects = [(number, _parse(line, where), where) for number, line, where in lines]
    header: tuple[str, ...] = ()
    rows: Numbered = []
    for number, value, where in objects:
        if not isinstance(value, dict):
            shown = json.dumps(value)[:40]
            raise DataError(f"{where}: expected an object such as {{{TEXT!r}: ...}}, got {shown}")
        header = header or tuple(value)
        missing = [key for key in header if not _is_value(value.get(key))]
        if required := [key for key in missing if key not in optional]:
            raise DataError(f"{where}: no text or number for {', '.join(required)}")
        rows.append((number, tuple("" if key in missing else str(value[key]) for key in header)))
    return header, rows


def _is_value(value: object) -> bool:
    return isinstance(value, str | int | float) and value == value  # which NaN is not


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None


def _is_one_object(content: str) -> bool:
    """Tell whether the text is a JSON object over several lines, or one whose values are columns."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and any(isinstance(inner, dict | list) for inner in value.values())


def _check(name: str, header: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]]) -> None:
    rows = list(rows)
    if not rows:
        raise DataError(f"{name}: is empty: there is no row in it")
    for line, values in rows:
        if len(values) != len(header):
            expected = f"{len(header)} ({', '.join(header)})"
            raise DataError(f"{name}: line {line}: has {len(values)} fields, expected {expected}")
        for column, value in zip(header, values, strict=True):
            if (place := lone_surrogate(value)) is not None:
                raise DataError(
                    f"{name}: line {line}: not Unicode text: a lone surrogate at character {place} of {column!r}"
                )
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}: more than one column is called {', '.join(repeated)}")
