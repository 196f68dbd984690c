"""CSV and TSV files, with detection of the separator and of quoting. Torch-free.

In GLUE's TSV files a quote is an ordinary character; pandas and spreadsheets write TSV files in which fields with tabs,
line ends or quotes are quoted. Reading either as the other merges rows, so the whole file is used to tell them apart.
"""

from __future__ import annotations

import csv
import io
import re
import sys

from xlpretrain.errors import DataError

_SEPARATORS = (",", ";", "\t")
_QUOTED_FIELD = re.compile(r'(?:\A|(?<=[\t\r\n]))"[^"]*+(?:""[^"]*+)*+"(?=[\t\r\n]|\Z)')

Rows = list[tuple[int, tuple[str, ...]]]
"""Pairs of a row's first line number, from 1, and its fields."""


def read_separated(content: str, usual: str, name: str) -> Rows:
    """The rows of a CSV or TSV file, including the header, without empty lines.

    The separator is `usual`, unless the first line contains only another one (spreadsheets write semicolons to .csv
    files in many countries). With commas or semicolons, quoting follows RFC 4180. With tabs, quotes are ordinary
    characters unless the whole file is quoted; see `_is_quoted`.

    Args:
        content: the text of the file.
        usual: the separator implied by the file's extension.
        name: the file, for messages.

    Raises:
        DataError: invalid quoting.
    """
    separator = _find_separator(content, usual)
    try:
        quoted = _parse_quoted(content, separator)
        if separator != "\t":
            return quoted
    except csv.Error as error:
        if separator != "\t":
            raise DataError(f"{name}: {error}") from None
        quoted = []
    lines = enumerate(content.split("\n"), 1)
    plain = [(n, tuple(line.removesuffix("\r").split("\t"))) for n, line in lines if line.strip("\r\n")]
    return quoted if _is_quoted(content, quoted, plain) else plain


def _find_separator(content: str, usual: str) -> str:
    first = content.lstrip("\r\n").split("\n", 1)[0]
    for separator in (usual, *_SEPARATORS):
        try:
            if len(next(csv.reader([first], delimiter=separator), ())) > 1:
                return separator
        except csv.Error:
            continue
    return usual


def _parse_quoted(content: str, separator: str) -> Rows:
    """Parse with quoting. Raises csv.Error with the line number."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    rows: Rows = []
    line = 1
    try:
        for row in reader:
            if row:
                rows.append((line, tuple(row)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}") from None
    return rows


def _is_quoted(content: str, quoted: Rows, plain: Rows) -> bool:
    """True if quotes in a TSV file are quoting. quoted, plain: its rows as parsed with and without quoting.

    Requires that parsing with quoting gives all rows the same number of fields, that every quote is where a writer
    would put it, and that one of these shows quoting: rows differ in length without it; the first line is quoted; or a
    quoted field contains a doubled quote. Otherwise quotes are text, such as a sentence that is one quotation.
    """
    if len({len(row) for _, row in quoted}) != 1 or '"' in _QUOTED_FIELD.sub("", content):
        return False
    if len({len(row) for _, row in plain}) > 1:
        return True
    if len(quoted) != len(plain):  # a field would span lines although each line has all fields
        return False
    return content.lstrip().startswith('"') or any('"' in field for _, row in quoted for field in row)
