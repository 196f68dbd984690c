"""Readers of documents. A document is its text."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    read_text,
)
from data_pipelines.sources.find import File, find_files, local_file, refuse_changed
from data_pipelines.sources.read_units import FileRange, ReadUnit, cut, text_bytes, unit_bytes
from xlpretrain.errors import DataError


def source_files(source: Source) -> list[File]:
    """The files of a source, in the order they are read. Raises `DataError` if there are none."""
    match source:
        case PythonDocsSource():
            return [local_file(path) for path in python_docs.find_modules(source.packages, stdlib=source.stdlib)]
        case HuggingFaceSource():
            return columnar.saved_files(source)
        case _:
            return find_files(source.path)


def fingerprint(files: Iterable[File]) -> str:
    """Tells whether files were added, removed or changed in size."""
    names = "".join(f"{file.path}\0{file.num_bytes}\0" for file in files)
    return hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def cut_into_units(
    sources: Sequence[Source], files: Sequence[Sequence[File]], *, wanted: int | None = None
) -> list[ReadUnit]:
    """The tasks of reading. wanted: about so much text in each, if it is not to follow from the files."""
    wanted = wanted or unit_bytes(sum(text_bytes(file) for group in files for file in group))
    return [
        unit
        for number, (source, group) in enumerate(zip(sources, files, strict=True))
        for unit in cut(number, [(file, _can_cut(source, file)) for file in group], wanted=wanted)
    ]


def read_pieces(source: Source, pieces: Sequence[FileRange]) -> Iterator[str]:
    """The documents in parts of files; those without any text are left out. Raises `DataError`."""
    for path, start, stop in pieces:
        for document in _read(source, path, start, stop):
            if document and not document.isspace():
                yield document


def read_unchanged(source: Source, pieces: Sequence[FileRange], found: Mapping[str, File]) -> Iterator[str]:
    """The documents in parts of files that stay as they were when they were found, as `read_pieces` gives them.

    found: by their paths; others are not looked at. Raises `DataError`, in the end if a file has changed.
    """
    files = list(dict.fromkeys(found[path] for path, _, _ in pieces if path in found))
    try:
        yield from read_pieces(source, pieces)
    except DataError:
        refuse_changed(files)  # which is the reason, then
        raise
    refuse_changed(files)


def _can_cut(source: Source, file: File) -> bool:
    lines = isinstance(source, JsonlSource | PythonDocsSource) or (
        isinstance(source, TextSource) and source.split == "blank_lines"
    )
    return isinstance(source, ParquetSource) or (lines and not is_compressed(file.path))


def _read(source: Source, path: str, start: int, stop: int) -> Iterator[str]:
    match source:
        case TextSource(split="files"):
            return iter([read_text(path)])
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
    return (text_of(record, source, f"{path}, row {row}: ") for row, record in records)


def _read_between_blank_lines(path: str, start: int, stop: int) -> Iterator[str]:
    """From the first blank line at or after `start` (but 0) to the first at or after `stop`."""
    lines: list[bytes] = []
    inside = start == 0
    for offset, line in read_lines(path, start):
        if line.strip() and not (line[0] > 127 and decode(line, f"{path}: ").isspace()):
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


def _join(lines: Sequence[bytes], path: str, offset: int) -> str:
    try:
        return b"\n".join(lines).decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        before = sum(len(line) + 1 for line in lines)
        where = f", the document that ends at byte {offset} (it has {before})" if offset >= 0 else ", its last document"
        return decode(b"\n".join(lines), f"{path}{where}: ")


def _read_jsonl(source: RecordSource, path: str, start: int, stop: int) -> Iterator[str]:
    for number, (offset, line) in enumerate(read_lines(path, start), start=1):
        if 0 <= stop <= offset:
            return
        if offset == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            try:
                yield _parse_line(line, source, where="")
            except DataError as error:
                raise DataError(f"{path}, line {line_number(path, offset) if start else number}: {error}") from None


def _parse_line(line: bytes, source: RecordSource, *, where: str) -> str:
    try:
        record = json.loads(decode(line, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}not JSON ({error})") from None
    return text_of(record, source, where)


def _read_webdataset(source: WebdatasetSource, path: str) -> Iterator[str]:
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
                    raise DataError(f"{path}, {member.name}: a link or the like, not a file; pack the file itself")
                file = tar.extractfile(member)
                assert file is not None
                data, where = file.read(), f"{path}, {member.name}: "
                if source.member == "txt":
                    yield decode(data, where).removeprefix("\ufeff")
                else:
                    yield _parse_line(data, source, where=where)
            if not chunks.ends_in_zeros(tar.offset):  # which tarfile itself takes for the end
                raise tarfile.ReadError(f"it ends at byte {tar.offset} without saying so")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: not a whole tar file ({error}); fetch it again") from None
    if others and not num_found:
        raise DataError(f"{path}: holds no .{source.member}, but {others}; set `member`, or do not name this file")


def text_of(record: Any, source: RecordSource, where: str) -> str:
    """The text of a record. Raises `DataError`, headed by `where`."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where}expected a JSON object with a field {source.field!r}, got a {type(record).__name__}")
    if source.template is None:
        text = _field(record, source.field, where)
    else:
        names = columnar.columns(source)
        text = source.template.format(**{name: _field(record, name, where) for name in names})
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = source.template or source.field
        raise DataError(f"{where}not Unicode text: a lone surrogate at character {error.start} of {name!r}") from None
    return text


def _field(record: Mapping[str, Any], field: str, where: str) -> str:
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        raise DataError(f"{where}no field {field!r}; the fields there are: {names} (set `field` in the source)")
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{where}the field {field!r} holds a {type(text).__name__}, expected text")
    return text
