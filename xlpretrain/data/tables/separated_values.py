"""CSV and TSV as programs write them: which character separates the fields, and whether quotes are quoting. Torch-free.

GLUE ships TSV in which a quote is a character like any other; pandas and spreadsheets write TSV in which fields with
tabs, line ends or quotes are quoted. Reading either as the other merges rows, so the whole file decides which it is.
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
"""Fields with the number of the line where they begin, from 1."""


def read_separated(content: str, usual: str, name: str) -> Rows:
    """The rows of a CSV or TSV file, header included; empty lines are left out.

    The separator is `usual`, unless the first line has none and has another one (a semicolon in a .csv, as spreadsheets
    write it in many countries). Where fields are separated by a comma or semicolon, quoting is that of RFC 4180. Where
    they are separated by a tab, quotes are characters unless the whole file is quoted; see `_is_quoted`.

    Args:
        content: the text of the file.
        usual: the separator that the file's name promises.
        name: of the file, for messages.

    Raises:
        DataError: the quoting is broken.
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
    """Raises csv.Error, headed by the line."""
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
    """Tell whether quotes in a TSV file are quoting, where its rows are given as read either way.

    They are if reading them so gives every row as many fields as the first one has, if every quote stands where a
    program that quotes would put it, and if one of these shows that a program has quoted: lines and tabs alone do not
    give rows of one length; the first line is quoted; or a field has a doubled quote within quotes. Otherwise (a
    sentence that is one quotation from beginning to end, say) they are part of the text.
    """
    if len({len(row) for _, row in quoted}) != 1 or '"' in _QUOTED_FIELD.sub("", content):
        return False
    if len({len(row) for _, row in plain}) > 1:
        return True
    if len(quoted) != len(plain):  # a field with line ends in it, and yet each line has all the fields
        return False
    return content.lstrip().startswith('"') or any('"' in field for _, row in quoted for field in row)
