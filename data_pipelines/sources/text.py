"""Plain text files and JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

from data_pipelines.sources.base import BadRecord, FileSource, RecordSource, decode_text
from data_pipelines.sources.files import is_compressed, line_number, read_chunks, read_lines
from data_pipelines.sources.find import File
from xlpretrain.schema import FormerKey


class TextSource(FileSource):
    """Plain text files."""

    type: Literal["text"] = "text"
    """Type of source."""
    documents: Annotated[Literal["files", "blank_lines"], FormerKey("split", values=("files", "blank_lines"))] = "files"
    """Unit of a document: a whole file, or the text between blank lines."""

    def can_split(self, file: File) -> bool:
        return self.documents == "blank_lines" and not is_compressed(file.path)

    def read(self, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
        if self.documents == "files":
            return iter([decode_text(b"".join(read_chunks(path)), lambda: path)])
        return _read_between_blank_lines(path, start, stop)


class JsonlSource(RecordSource):
    """JSON lines files, with one object per line; also the output of datatrove."""

    type: Literal["jsonl"] = "jsonl"
    """Type of source."""

    def can_split(self, file: File) -> bool:
        return not is_compressed(file.path)

    def read(self, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
        return read_jsonl(self, path, start, stop)


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
    return decode_text(data, lambda: f"{path}, {where}")


def read_jsonl(source: RecordSource, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
    """The documents of the lines that begin at bytes [start, stop)."""
    for number, (offset, line) in enumerate(read_lines(path, start, stop), start=1):
        if 0 <= stop <= offset:
            return
        if line.strip():
            yield source.parse_json(line, partial(_place_of_line, path, offset, None if start else number))


def _place_of_line(path: str, offset: int, number: int | None) -> str:
    return f"{path}, line {line_number(path, offset) if number is None else number}"
