"""The tasks that read a corpus. They depend on the files alone, not on the number of workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data_pipelines.sources.files import is_compressed
from data_pipelines.sources.find import File

SMALLEST_UNIT, LARGEST_UNIT = 8 << 20, 128 << 20
WANTED_UNITS = 256
EXPANDS = 4
"""Approximate compression ratio of text files."""

FileRange = tuple[str, int, int]
"""A file and a range of it, [start, stop) in bytes. stop -1: the end of the file."""


@dataclass(frozen=True)
class ReadUnit:
    """Parts of files of one source, read by one task. num_bytes: estimated bytes of text."""

    source: int
    pieces: tuple[FileRange, ...]
    num_bytes: int


def unit_bytes(num_bytes: int) -> int:
    """Bytes of text per task for a corpus of `num_bytes`; bounds a worker's memory."""
    return min(max(num_bytes // WANTED_UNITS, SMALLEST_UNIT), LARGEST_UNIT)


def text_bytes(file: File) -> int:
    """Estimated bytes of text in a file."""
    return file.num_bytes * (EXPANDS if is_compressed(file.path) else 1)


def cut(source: int, files: Iterable[tuple[File, bool]], *, wanted: int) -> Iterator[ReadUnit]:
    """The units of a source. Small files are grouped; large ones are cut if possible (the bool)."""
    pieces: list[FileRange] = []
    size = 0
    for file, can_cut in files:
        for piece, num_bytes in _pieces(file, wanted if can_cut else None):
            if pieces and size + num_bytes > wanted:
                yield ReadUnit(source, tuple(pieces), size)
                pieces, size = [], 0
            pieces.append(piece)
            size += num_bytes
    if pieces:
        yield ReadUnit(source, tuple(pieces), size)


def _pieces(file: File, wanted: int | None) -> Sequence[tuple[FileRange, int]]:
    if wanted is None or file.num_bytes <= wanted:
        return [((file.path, 0, -1), text_bytes(file))]
    count = -(-file.num_bytes // wanted)
    starts = [file.num_bytes * i // count for i in range(count)] + [file.num_bytes]
    return [((file.path, starts[i], starts[i + 1]), starts[i + 1] - starts[i]) for i in range(count)]
