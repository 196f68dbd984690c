"""The metrics file, the authoritative log of a run."""

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

    Lines that cannot be written (a full disk) are kept in memory and written in order once possible. `fence` is called
    before each write, and raises if this process no longer owns the run.
    """

    def __init__(self, path: Path, *, fence: Callable[[], None] = lambda: None):
        self.path = path
        self._fence = fence
        self._file: FileIO | None = None
        self._pending: deque[bytes] = deque()
        self._lock = Lock()  # the thread of a save calls `sync` while the loop may append

    def append(self, metrics: Mapping[str, float | int]) -> None:
        """Append one line, unbuffered. Infinities and NaN are written as null.

        Raises OSError; the line is then kept in memory.
        """
        line = json.dumps({k: v if math.isfinite(v) else None for k, v in metrics.items()}) + "\n"
        with self._lock:
            self._pending.append(line.encode())
            self._fence()
            self._flush()

    def sync(self) -> None:
        """Fsync the appended lines. Raises OSError."""
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
                self._file.truncate(end)  # never leave a partial line
                raise
            self._pending.popleft()

    def truncate_to_step(self, step: int) -> list[dict[str, Any]]:
        """Drop every line after `step` by renaming a new file over the old one; returns all lines of the old file.

        The new file stays open: if another process then replaces it too, what this one appends reaches no file.
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
        """Close the file; the next `append` reopens it. Returns the number of lines that could not be written."""
        if self._file is not None:
            self._file.close()
            self._file = None
        return len(self._pending)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a `metrics.jsonl`, without a last line truncated by a crash."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def last_evaluation(path: Path, step: int) -> dict[str, Any] | None:
    """The newest line of a `metrics.jsonl`, up to `step`, that has an evaluation; None if there is none."""
    rows = (row for row in read_metrics(path) if row["step"] <= step and row.get("valid/loss") is not None)
    return next(reversed(list(rows)), None)
