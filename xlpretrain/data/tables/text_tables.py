"""Files of short texts: CSV and TSV with a header, JSON, or one text per line. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlpretrain.data.tables.json_text import json_lines, parse_json
from xlpretrain.data.tables.separated_values import read_separated
from xlpretrain.data.tables.utf8 import read_utf8
from xlpretrain.data.tokenizers.base import lone_surrogate
from xlpretrain.errors import DataError

TEXT = "text"
"""Column name for files with one text per line."""

Numbered = list[tuple[int, tuple[str, ...]]]
"""Pairs of a row's first line number (or element number in a JSON array) and its values."""

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
    """Rows with named columns. name: the file, for messages. line_numbers: first line of each row in the file."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    line_numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, column: str) -> list[str]:
        """The values of one column. Raises `DataError` if there is no such column."""
        if column not in self.columns:
            raise DataError(f"{self.name}: no column {column!r}; the columns are: {', '.join(self.columns)}")
        index = self.columns.index(column)
        return [row[index] for row in self.rows]

    def columns_of(self, columns: Sequence[str]) -> list[tuple[str, ...]]:
        """The values of some columns, row by row. Raises `DataError`."""
        return list(zip(*(self.column(column) for column in columns), strict=True))


def refuse_same_file(data: Path | None, to: Path | None) -> None:
    """Raise `DataError` if the output file is the input file."""
    if data is not None and to is not None and data.exists() and to.exists() and data.samefile(to):
        raise DataError(f"{to}: is the input file (--input); choose another output file (--to)")


def is_separated(path: Path | None) -> bool:
    """True if a file has the extension of a CSV or TSV file."""
    return path is not None and path.suffix.lower() in _DELIMITERS


def read_table(
    path: Path | None, *, columns: Sequence[str] = (), optional: Sequence[str] = (), lists: Sequence[str] = ()
) -> Table:
    """Read a .csv, .tsv, .json or .jsonl file; other files, and standard input, have one text per line.

    See `read_separated` for separators and quotes. Column names are stripped.

    Args:
        path: the file, or None for standard input.
        columns: column names of a .csv or .tsv file without a header (default: the first line is the header).
        optional: columns that may be missing, null or NaN in JSON; they become empty strings.
        lists: columns that may have lists in JSON; a list becomes its JSON text.

    Raises:
        DataError: the file cannot be read, has no rows, has rows of different lengths, or has an unsupported format.
    """
    name = "standard input" if path is None else str(path)
    kind = path.suffix.lower() if path is not None else ""
    if kind in _REFUSED:
        raise DataError(f"{name}: is {_REFUSED[kind]}; convert it to .csv, .tsv, .json, .jsonl or one text per line")
    content = read_utf8(path)
    rows: Numbered
    if kind in _DELIMITERS:
        rows = read_separated(content, _DELIMITERS[kind], name)
        header = tuple(columns)
        if not columns and rows:
            header, rows = tuple(column.strip() for column in rows[0][1]), rows[1:]
    elif kind in (".json", ".jsonl", ".ndjson"):
        header, rows = _read_objects(content, name, may_be_array=kind == ".json", optional=optional, lists=lists)
    else:
        header = (TEXT,)
        rows = [(n, (line.removesuffix("\r"),)) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    _check(name, header, rows)
    return Table(name, header, [values for _, values in rows], [line for line, _ in rows])


def _read_objects(
    content: str, name: str, *, may_be_array: bool, optional: Sequence[str], lists: Sequence[str]
) -> tuple[tuple[str, ...], Numbered]:
    """The keys and values of JSON objects, one per line or in an array. All must have the keys of the first."""
    if may_be_array and content.lstrip()[:1] == "[":
        values = parse_json(content, name)
        objects = [(number, value, f"{name}: element {number}") for number, value in enumerate(values, 1)]
    elif may_be_array and _is_one_object(content):
        raise DataError(
            f"{name}: is one JSON object; expected an array of objects, or one object per line (pandas:"
            " to_json(orient='records'))"
        )
    else:
        objects = [(number, value, where) for number, where, value in json_lines(content, name)]
    header: tuple[str, ...] = ()
    rows: Numbered = []
    for number, value, where in objects:
        if not isinstance(value, dict):
            shown = json.dumps(value)[:40]
            raise DataError(f"{where}: expected an object such as {{{TEXT!r}: ...}}, got {shown}")
        header = header or tuple(value)
        value = {key: _written(of) if key in lists else of for key, of in value.items()}
        missing = [key for key in header if not _is_value(value.get(key))]
        if required := [key for key in missing if key not in optional]:
            got = " (got a list)" if any(isinstance(value.get(key), list) for key in required) else ""
            raise DataError(f"{where}: no text or number for {', '.join(required)}{got}")
        rows.append((number, tuple("" if key in missing else str(value[key]) for key in header)))
    return header, rows


def _is_value(value: object) -> bool:
    return isinstance(value, str | int | float) and value == value  # excludes NaN


def _written(value: Any) -> Any:
    """The JSON text of a list; any other value unchanged."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _is_one_object(content: str) -> bool:
    """True if the text is a single JSON object with nested values, such as columns."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and any(isinstance(inner, dict | list) for inner in value.values())


def _check(name: str, header: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]]) -> None:
    rows = list(rows)
    if not rows:
        raise DataError(f"{name}: has no rows")
    for line, values in rows:
        if len(values) != len(header):
            expected = f"{len(header)} ({', '.join(header)})"
            raise DataError(f"{name}: line {line}: has {len(values)} fields, expected {expected}")
        for column, value in zip(header, values, strict=True):
            if (place := lone_surrogate(value)) is not None:
                raise DataError(
                    f"{name}: line {line}: invalid Unicode: a lone surrogate at character {place} of {column!r}"
                )
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}: several columns are named {', '.join(repeated)}; rename all but one")
