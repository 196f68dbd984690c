"""Files of short texts: CSV and TSV with a header, JSON lines, or a text a line. Torch-free."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xlpretrain.errors import DataError

TEXT = "text"
"""The column of a file that has a text a line."""


@dataclass(frozen=True)
class Table:
    """Rows with named columns. name: of the file, for messages. lines: where in the file each row begins."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    line_numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, column: str) -> list[str]:
        """Its values. Raises `DataError` if there is no such column."""
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


def read_table(path: Path | None, *, columns: Sequence[str] = ()) -> Table:
    """The rows of a file, told by its name: .csv, .tsv, .jsonl; anything else, and standard input, is a text a line.

    Args:
        path: the file; None: standard input.
        columns: names of those of a .csv or .tsv without a header (default: its first line is the header).

    Raises:
        DataError: it cannot be read, has no rows, or one that is not like the others.
    """
    name = "standard input" if path is None else str(path)
    try:
        content = (sys.stdin.buffer.read() if path is None else path.read_bytes()).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start})") from None
    kind = path.suffix.lower() if path is not None else ""
    if kind in (".csv", ".tsv"):
        found = list(_separated(content, "," if kind == ".csv" else "\t", name))
        header, rows = (tuple(columns), found) if columns else (tuple(found[0][1]) if found else (), found[1:])
    elif kind in (".jsonl", ".ndjson"):
        objects = list(_objects(content, name))
        header, rows = objects[0][1] if objects else (), [(line, values) for line, _, values in objects]
    else:
        header, rows = (TEXT,), [(n, (line,)) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    _check(name, header, rows)
    return Table(name, tuple(header), [values for _, values in rows], [line for line, _ in rows])


def _separated(content: str, delimiter: str, name: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, tuple(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}: line {line}: {error}") from None


def _objects(content: str, name: str) -> Iterator[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    """Line, keys and values of each object; all must have the keys of the first one."""
    first: tuple[str, ...] = ()
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}: line {number}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise DataError(f"{name}: line {number}: expected an object such as {{{TEXT!r}: ...}}, got {line[:40]}")
        first = first or tuple(value)
        missing = [key for key in first if not isinstance(value.get(key), str | int | float)]
        if missing:
            raise DataError(f"{name}: line {number}: no text or number for {', '.join(missing)}")
        yield number, first, tuple(str(value[key]) for key in first)


def _check(name: str, header: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]]) -> None:
    rows = list(rows)
    if not rows:
        raise DataError(f"{name}: is empty: there is no row in it")
    for line, values in rows:
        if len(values) != len(header):
            expected = f"{len(header)} ({', '.join(header)})"
            raise DataError(f"{name}: line {line}: has {len(values)} fields, expected {expected}")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}: more than one column is called {', '.join(repeated)}")
