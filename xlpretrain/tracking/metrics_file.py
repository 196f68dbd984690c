"""Metrics: the file that is the truth, and the meters that fill it."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

from xlpretrain.file_system.atomic_files import atomic_writer, fsync

Metrics = dict[str, float | int]


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, steps ascending, numbers in full precision.

    Lines that cannot be written (a full disk) are kept, and written in their order as soon as they can be. `fence` is
    called before anything is written, and raises if that is no longer this process's business.
    """

    def __init__(self, path: Path, *, fence: Callable[[], None] = lambda: None):
        self.path = path
        self._fence = fence
        self._file: FileIO | None = None
        self._pending: deque[bytes] = deque()
        self._lock = Lock()  # a save's thread waits for the disk here, while the loop may append

    def append(self, metrics: Mapping[str, float | int]) -> None:
        """Add one line, handed to the operating system at once. Infinities and NaN are written as null.

        Raises OSError; the line is then kept.
        """
        line = json.dumps({k: v if math.isfinite(v) else None for k, v in metrics.items()}) + "\n"
        with self._lock:
            self._pending.append(line.encode())
            self._fence()
            self._flush()

    def sync(self) -> None:
        """Wait until what was appended is on the disk. Raises OSError."""
        with self._lock:
            self._flush()
        if self.path.exists():
            fsync(self.path)

    def _flush(self) -> None:
        while self._pending:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
            end = os.fstat(self._file.fileno()).st_size
            rest = self._pending[0]
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(end)  # never half a line
                raise
            self._pending.popleft()

    def truncate_to_step(self, step: int) -> list[dict[str, Any]]:
        """Drop every line after `step`, by renaming a new file over the old one; returns all lines there were.

        The new file stays open: what is appended after yet another process has done the same goes nowhere.
        """
        self.close()
        rows = list(read_metrics(self.path))
        kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step).encode()
        with atomic_writer(self.path, fence=self._fence) as temporary:
            temporary.write_bytes(kept)
            self._file = temporary.open("ab", buffering=0)
            os.fsync(self._file.fileno())
        return rows

    def close(self) -> int:
        """Close the file; the next `append` opens it again. Returns how many lines could not be written."""
        if self._file is not None:
            self._file.close()
            self._file = None
        return len(self._pending)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut short by a crash is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def last_evaluation(path: Path, step: int) -> dict[str, Any] | None:
    """The newest line of a `metrics.jsonl`, up to `step`, that has an evaluation; None if none has."""
    rows = (row for row in read_metrics(path) if row["step"] <= step and row.get("valid/loss") is not None)
    return next(reversed(list(rows)), None)
