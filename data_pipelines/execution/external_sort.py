"""External sorting: tasks write sorted runs, and later tasks each gather one range of the keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

KEYS = 1 << 64


def write_sorted_run(path: Path, columns: Sequence[np.ndarray], *, unique: bool = False) -> None:
    """Write columns of uint64 to a file, with rows in lexicographic order. unique: drop repeated rows."""
    table = np.stack([np.asarray(column, np.uint64) for column in columns])
    table = table[:, np.lexsort(table[::-1])]
    if unique and table.shape[1]:
        table = table[:, np.any(np.diff(table, prepend=~table[:, :1]), axis=0)]
    np.save(path, np.ascontiguousarray(table))


def key_range(task: int, num_tasks: int) -> tuple[int, int]:
    """The range of keys [low, high) of one of `num_tasks` tasks."""
    return task * KEYS // num_tasks, (task + 1) * KEYS // num_tasks


def rows_within(table: np.ndarray, low: int, high: int) -> slice:
    """The rows of a sorted run with keys in [low, high)."""
    first = table[0].searchsorted(np.uint64(low))
    last = table[0].searchsorted(np.uint64(high)) if high < KEYS else table.shape[1]
    return slice(int(first), int(last))


def gather(paths: Iterable[Path], low: int, high: int, *, num_columns: int) -> np.ndarray:
    """The rows of all runs with keys in [low, high), sorted."""
    parts = [np.empty((num_columns, 0), np.uint64)]
    for path in paths:
        table = np.load(path, mmap_mode="r")
        parts.append(np.asarray(table[:, rows_within(table, low, high)]))
    rows = np.concatenate(parts, axis=1)
    return rows[:, np.lexsort(rows[::-1])]


class Document(NamedTuple):
    """A document during a build.

    order: the sort key, a 16-byte hash of the text. split: index of the split, see `splits`. source: index of the
    source.
    """

    order: bytes
    text: bytes
    split: int
    source: int


class SortedDocumentWriter:
    """Writes documents to a folder as sorted runs of about `run_bytes` of text each. Call `close` at the end."""

    def __init__(self, folder: Path, *, run_bytes: int):
        self._folder, self._run_bytes = folder, run_bytes
        self._waiting: list[Document] = []
        self._size, self._num_runs = 0, 0

    def add(self, document: Document) -> None:
        """Add a document."""
        self._waiting.append(document)
        self._size += len(document.text)
        if self._size >= self._run_bytes:
            self.close()

    def close(self) -> None:
        """Write the buffered documents."""
        if not self._waiting:
            return
        documents = sorted(self._waiting)
        name = f"{self._num_runs:05d}.documents"
        with (self._folder / f"{name}.text").open("wb") as file:
            file.writelines(document.text for document in documents)
        columns = [
            [int.from_bytes(document.order[:8], "big") for document in documents],
            [int.from_bytes(document.order[8:], "big") for document in documents],
            np.cumsum([len(document.text) for document in documents]),
            [document.split for document in documents],
            [document.source for document in documents],
        ]
        np.save(self._folder / f"{name}.npy", np.stack([np.asarray(column, np.uint64) for column in columns]))
        self._waiting, self._size = [], 0
        self._num_runs += 1


def gather_documents(stage: Path, low: int, high: int) -> list[Document]:
    """The documents of all runs of a stage with the first 8 bytes of their order in [low, high), sorted."""
    found: list[Document] = []
    for path in document_runs(stage):
        table = np.load(path, mmap_mode="r")
        rows = rows_within(table, low, high)
        if rows.start < rows.stop:
            found.extend(_read_documents(path, table, rows))
    found.sort()
    return found


def document_runs(stage: Path) -> list[Path]:
    """The files of a stage's sorted runs of documents."""
    return sorted(stage.glob("[0-9]*/*.documents.npy"))


def _read_documents(path: Path, table: np.ndarray, rows: slice) -> Iterator[Document]:
    begin = int(table[2, rows.start - 1]) if rows.start else 0
    with path.with_suffix(".text").open("rb") as file:
        file.seek(begin)
        text = file.read(int(table[2, rows.stop - 1]) - begin)
    start = 0
    for first, rest, end, split, source in table[:, rows].T.tolist():
        order = first.to_bytes(8, "big") + rest.to_bytes(8, "big")
        yield Document(order, text[start : end - begin], split, source)
        start = end - begin
