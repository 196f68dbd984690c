"""Readers of documents, by type of source. A document is a string."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.sources import columnar, python_docs
from data_pipelines.sources.config import (
    HuggingFaceSource,
    JsonlSource,
    ParquetSource,
    PythonDocsSource,
    RecordSource,
    Source,
    TextSource,
    WebdatasetSource,
)
from data_pipelines.sources.files import (
    ChunkReader,
    TailWatcher,
    decode,
    is_compressed,
    line_number,
    read_chunks,
    read_lines,
)
from data_pipelines.sources.find import File, find_files, local_file, refuse_changed
from data_pipelines.sources.read_units import FileRange, ReadUnit, cut, text_bytes, unit_bytes
from xlpretrain.data.tokenizers.base import lone_surrogate
from xlpretrain.errors import DataError


def source_files(source: Source) -> list[File]:
    """The files of a source, in reading order. Raises `DataError` if there are none."""
    match source:
        case PythonDocsSource():
            return [local_file(path) for path in python_docs.find_modules(source.packages, stdlib=source.stdlib)]
        case HuggingFaceSource():
            return columnar.saved_files(source)
        case _:
            return find_files(source.path)


def fingerprint(files: Iterable[File]) -> str:
    """A hash of the files' names and sizes."""
    names = "".join(f"{file.path}\0{file.num_bytes}\0" for file in files)
    return hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def cut_into_units(
    sources: Sequence[Source], files: Sequence[Sequence[File]], *, wanted: int | None = None
) -> list[ReadUnit]:
    """The reading tasks. wanted: approximate bytes of text per task (default: by the size of the corpus)."""
    wanted = wanted or unit_bytes(sum(text_bytes(file) for group in files for file in group))
    return [
        unit
        for number, (source, group) in enumerate(zip(sources, files, strict=True))
        for unit in cut(number, [(file, _can_cut(source, file)) for file in group], wanted=wanted)
    ]


@dataclass(frozen=True)
class BadRecord:
    """An invalid record: not JSON, not Unicode, or with a missing or null field.

    problem: a message. place: gives the record's location; called only for messages, since it may read the file again.
    """

    problem: str
    place: Callable[[], str]


SkipBad = Callable[[BadRecord], None]
"""Called for each invalid record that is skipped."""


def read_pieces(source: Source, pieces: Sequence[FileRange], *, skip_bad: SkipBad | None = None) -> Iterator[str]:
    """The documents in parts of files, including empty ones.

    skip_bad: called for each invalid record (default: the first one is an error). Raises `DataError`.
    """
    for path, start, stop in pieces:
        for document in _read(source, path, start, stop):
            if isinstance(document, BadRecord):
                if skip_bad is None:
                    raise DataError(f"{document.place()}: {document.problem}")
                skip_bad(document)
            else:
                yield document


def read_unchanged(
    source: Source, pieces: Sequence[FileRange], found: Mapping[str, File], *, skip_bad: SkipBad | None = None
) -> Iterator[str]:
    """The documents of `read_pieces`, followed by a check that the files have not changed since they were found.

    found: files to check, by path; others are not checked. Raises `DataError`, at the end if a file has changed.
    """
    files = list(dict.fromkeys(found[path] for path, _, _ in pieces if path in found))
    try:
        yield from read_pieces(source, pieces, skip_bad=skip_bad)
    except DataError:
        refuse_changed(files)  # the likely cause
        raise
    refuse_changed(files)


def _can_cut(source: Source, file: File) -> bool:
    lines = isinstance(source, JsonlSource | PythonDocsSource) or (
        isinstance(source, TextSource) and source.documents == "blank_lines"
    )
    return isinstance(source, ParquetSource) or (lines and not is_compressed(file.path))


def _read(source: Source, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
    match source:
        case TextSource(documents="files"):
            return iter([_decode(b"".join(read_chunks(path)), lambda: path)])
        case TextSource():
            return _read_between_blank_lines(path, start, stop)
        case JsonlSource():
            return _read_jsonl(source, path, start, stop)
        case PythonDocsSource():
            return _read_jsonl(JsonlSource(path=path), path, start, stop)
        case WebdatasetSource():
            return _read_webdataset(source, path)
        case ParquetSource():
            records = columnar.read_parquet(path, start, stop, columnar.columns(source))
        case HuggingFaceSource():
            records = columnar.read_arrow(path, columnar.columns(source))
    return (text_of(record, source, partial("{}, row {}".format, path, row)) for row, record in records)


def _decode(data: bytes, place: Callable[[], str]) -> str | BadRecord:
    try:
        return decode(data).removeprefix("\ufeff")
    except DataError as error:
        return BadRecord(str(error), place)


def _read_between_blank_lines(path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
    """Read from the first blank line at or after `start` (or from 0) to the first one at or after `stop`."""
    lines: list[bytes] = []
    inside = start == 0
    for offset, line in read_lines(path, start, stop):
        if not inside and 0 <= stop <= offset:
            return
        if line.strip() and not (line[0] > 127 and line.decode(errors="replace").isspace()):
            if inside:
                lines.append(line)
            continue
        if lines:
            yield _join(lines, path, offset)
            lines = []
        inside = True
        if 0 <= stop <= offset:
            return
    if lines:
        yield _join(lines, path, -1)


def _join(lines: Sequence[bytes], path: str, offset: int) -> str | BadRecord:
    data = b"\n".join(lines)
    where = f"the document that ends at byte {offset} ({len(data) + 1} bytes)" if offset >= 0 else "the last document"
    return _decode(data, lambda: f"{path}, {where}")


def _read_jsonl(source: RecordSource, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
    for number, (offset, line) in enumerate(read_lines(path, start, stop), start=1):
        if 0 <= stop <= offset:
            return
        if line.strip():
            yield _parse(line, source, partial(_place_of_line, path, offset, None if start else number))


def _place_of_line(path: str, offset: int, number: int | None) -> str:
    return f"{path}, line {line_number(path, offset) if number is None else number}"


def _parse(data: bytes, source: RecordSource, place: Callable[[], str]) -> str | BadRecord:
    text = _decode(data, place)
    if isinstance(text, BadRecord):
        return text
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRecord(f"not JSON ({error})", place)
    return text_of(record, source, place)


def _read_webdataset(source: WebdatasetSource, path: str) -> Iterator[str | BadRecord]:
    chunks = TailWatcher(read_chunks(path))
    num_found, others = 0, ""
    try:
        with tarfile.open(fileobj=io.BufferedReader(ChunkReader(chunks)), mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isdir() or name.startswith(".") or not name.endswith(f".{source.member}"):
                    others = others if member.isdir() else member.name
                    continue
                num_found += 1
                if not member.isfile():
                    raise DataError(f"{path}, {member.name}: not a regular file (maybe a link); pack the file itself")
                file = tar.extractfile(member)
                assert file is not None
                place = partial("{}, {}".format, path, member.name)
                yield _decode(file.read(), place) if source.member == "txt" else _parse(file.read(), source, place)
            if not chunks.ends_in_zeros(tar.offset):  # tarfile accepts a truncated file
                raise tarfile.ReadError(f"it ends at byte {tar.offset} without an end marker")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: incomplete tar file ({error}); download it again") from None
    if others and not num_found:
        raise DataError(f"{path}: contains no .{source.member}, but {others}; set `member`, or do not list this file")


def text_of(record: Any, source: RecordSource, place: Callable[[], str]) -> str | BadRecord:
    """The text of a record. place: gives its location for messages."""
    names = columnar.columns(source)
    if not isinstance(record, Mapping):
        return BadRecord(f"expected a JSON object with a field {names[0]!r}, got a {type(record).__name__}", place)
    for name in names:
        if problem := _problem_of(record, name):
            return BadRecord(problem, place)
    values = {name: record[name] for name in names}
    text = values[source.field] if source.template is None else source.template.format(**values)
    if (at := lone_surrogate(text)) is not None:
        field = source.template or source.field
        return BadRecord(f"invalid Unicode: a lone surrogate at character {at} of {field!r}", place)
    return text


def _problem_of(record: Mapping[str, Any], field: str) -> str | None:
    """The reason that a field of a record is not text; None if it is."""
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        return f"no field {field!r}; the available fields are: {names} (set `field` in the source)"
    if isinstance(record[field], bytes):  # an Arrow string that is not UTF-8
        try:
            decode(record[field])
        except DataError as error:
            return f"the field {field!r} is {error}"
    if not isinstance(record[field], str):
        return f"the field {field!r} has type {type(record[field]).__name__}, expected text"
    return None
