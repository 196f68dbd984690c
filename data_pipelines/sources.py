"""Where documents come from. A document is its text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines import python_docs
from data_pipelines.config import JsonlSource, PythonDocsSource, Source, TextSource
from data_pipelines.files import decode, find_files, read_lines, read_text
from xlpretrain.errors import DataError


def source_files(source: Source) -> list[Path]:
    """The files of a source, in the order they are read. Raises `DataError` if there are none."""
    if isinstance(source, PythonDocsSource):
        return python_docs.find_modules(source.packages, stdlib=source.stdlib)
    return find_files(source.path)


def fingerprint(files: Sequence[Path]) -> str:
    """Tells whether files were added, removed or changed in size."""
    names = "".join(f"{file}\0{file.stat().st_size}\0" for file in files)
    return hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def read_documents(source: Source, files: Sequence[Path], *, workers: int) -> Iterator[str]:
    """The documents of a source; those without any text are left out. Raises `DataError`."""
    documents: Iterator[str]
    match source:
        case TextSource():
            documents = (document for file in files for document in _read_text_file(file, source.split))
        case JsonlSource():
            documents = (document for file in files for document in _read_jsonl_file(file, source.field))
        case PythonDocsSource():
            documents = python_docs.read_modules(files, workers=workers)
    return (document for document in documents if document and not document.isspace())


def _read_text_file(file: Path, split: str) -> list[str]:
    text = read_text(file)
    return re.split(r"\n\s*\n", text) if split == "blank_lines" else [text]


def _read_jsonl_file(file: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(read_lines(file), start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield _parse_line(line, field, where=f"{file}, line {number}: ")


def _parse_line(line: bytes, field: str, *, where: str) -> str:
    try:
        record = json.loads(decode(line, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}not JSON ({error})") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}expected a JSON object with a field {field!r}, got a {type(record).__name__}")
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        raise DataError(f"{where}no field {field!r}; the fields there are: {names} (set `field` in the source)")
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{where}the field {field!r} holds a {type(text).__name__}, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}not Unicode text: a lone surrogate at character {error.start} of {field!r}") from None
    return text
