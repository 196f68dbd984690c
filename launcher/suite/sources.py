"""Rows of a suite's files, and the files that fine-tunes read when those need to be rewritten. Torch-free."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlpretrain.data.tables.json_text import json_lines
from xlpretrain.data.tables.text_tables import read_table
from xlpretrain.data.tables.utf8 import read_utf8
from xlpretrain.errors import DataError
from xlpretrain.file_system.atomic_files import atomic_writer

TEXTS, LABEL = ("text", "text_b"), "label"
"""The columns of a rewritten file."""
FILE = "file"
"""Name of the column that every row of minimal pairs has: the file, without its ending."""
_MOST_LEFT_OUT = 0.01


@dataclass(frozen=True)
class Rows:
    """The rows of a file. where: the place of each, for messages. num_left_out: rows with too few or many fields."""

    name: str
    rows: Sequence[Mapping[str, str]]
    where: Sequence[str]
    num_left_out: int = 0

    def filled(self, templates: Sequence[str]) -> list[tuple[str, ...]]:
        """The texts that templates give for each row. Raises `DataError` for a column that is missing.

        A template is the name of a column, or a text with names in braces.
        """
        return [
            tuple(_fill(template, row, where) for template in templates)
            for row, where in zip(self.rows, self.where, strict=True)
        ]


def read_rows(path: Path, *, plain_tsv: bool = False, columns: Sequence[str] = ()) -> Rows:
    """Read a file: .csv, .tsv, JSON lines, or a plain TSV file; values of JSON that are not scalars are left out.

    Args:
        plain_tsv: tabs always separate fields, and quotes are characters.
        columns: names of the columns of a file without a header.

    Raises:
        DataError: the file cannot be read, has no rows, or has more than a hundredth of defective ones.
    """
    if plain_tsv:
        return _read_plain_tsv(path, columns)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_objects(path)
    table = read_table(path, columns=columns)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return Rows(str(path), rows, [f"{path}: line {line}" for line in table.line_numbers])


def prepare(source: Path, target: Path, *, text: Sequence[str], label: str, **options: Any) -> int:
    """Rewrite a file as JSON lines with the columns of `TEXTS` and `LABEL`. Returns the number of rows left out.

    text: one or two templates. label: column of the label. options: see `read_rows`. Raises `DataError`.
    """
    found = read_rows(source, **options)
    with atomic_writer(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for texts in found.filled([*text, label]):
            print(json.dumps(dict(zip([*TEXTS[: len(text)], LABEL], texts, strict=True))), file=file)
    return found.num_left_out


def pair_files(data: Path) -> list[Path]:
    """The files of minimal pairs: `data` itself, or all .jsonl files in it. Raises `DataError` if there are none."""
    if not data.is_dir():
        return [data]
    found = sorted(path for path in data.rglob("*.jsonl") if not path.name.startswith("."))
    if not found:
        raise DataError(f"{data}: has no .jsonl files")
    stems = [path.stem for path in found]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise DataError(f"{data}: several files are named {', '.join(repeated)}.jsonl; choose a folder inside it")
    return found


def read_pairs(path: Path) -> Rows:
    """Read a file of minimal pairs, with the column `FILE`. Raises `DataError`."""
    found = read_rows(path)
    return Rows(found.name, [{**row, FILE: path.stem} for row in found.rows], found.where)


def _read_plain_tsv(path: Path, columns: Sequence[str]) -> Rows:
    lines = [(n, line.removesuffix("\r").split("\t")) for n, line in enumerate(read_utf8(path).split("\n"), 1) if line]
    if not columns and lines:
        columns, lines = [column.strip() for column in lines[0][1]], lines[1:]
    sound = [(n, fields) for n, fields in lines if len(fields) == len(columns)]
    num_left_out = len(lines) - len(sound)
    if not lines:
        raise DataError(f"{path}: has no rows")
    if num_left_out > max(1, _MOST_LEFT_OUT * len(lines)):
        first = next(n for n, fields in lines if len(fields) != len(columns))
        raise DataError(
            f"{path}: {num_left_out:,} of {len(lines):,} rows, the first on line {first}, do not have {len(columns)}"
            f" fields separated by tabs ({', '.join(columns)})"
        )
    rows = [dict(zip(columns, fields, strict=True)) for _, fields in sound]
    return Rows(str(path), rows, [f"{path}: line {n}" for n, _ in sound], num_left_out)


def _read_objects(path: Path) -> Rows:
    rows, places = [], []
    for _, where, value in json_lines(read_utf8(path), str(path)):
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, got {json.dumps(value)[:40]}")
        rows.append({key: str(item) for key, item in value.items() if isinstance(item, str | int | float)})
        places.append(where)
    if not rows:
        raise DataError(f"{path}: has no rows")
    return Rows(str(path), rows, places)


def _fill(template: str, row: Mapping[str, str], where: str) -> str:
    if "{" not in template:
        return _value(template, row, where)
    return "".join(before + (_value(name, row, where) if name is not None else "") for before, name in _parts(template))


def _parts(template: str) -> Iterator[tuple[str, str | None]]:
    for before, name, _, _ in string.Formatter().parse(template):
        yield before, name


def _value(column: str, row: Mapping[str, str], where: str) -> str:
    if column not in row:
        raise DataError(f"{where}: no column {column!r}; the columns are: {', '.join(row)}")
    return row[column]
