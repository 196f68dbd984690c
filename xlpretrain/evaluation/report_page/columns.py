"""A metrics file as columns, read in increments while a run appends to it. Torch-free."""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK_BYTES = 1 << 22


class MetricsColumns:
    """The rows of a `metrics.jsonl` by metric: float64, NaN where a row lacks a metric or has null.

    A run drops rows by renaming a shorter file over the old one (a resume, a rollback); the whole file is then read
    again. Lines that are not JSON objects with a step are skipped.

    Attributes:
        num_damaged: number of skipped lines.
    """

    def __init__(self, path: Path):
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.num_damaged = 0
        self._file_id: tuple[int, int] | None = None  # device and inode
        self._offset = 0
        self._rest = b""
        self._num_rows = 0
        self._columns: dict[str, array[float]] = {}

    def refresh(self) -> bool:
        """Read what was appended since the last call. Returns True if anything changed. Raises OSError."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            had_rows = self._num_rows > 0
            self._forget()
            return had_rows
        with file:
            found = os.fstat(file.fileno())
            is_new = self._file_id != (found.st_dev, found.st_ino) or found.st_size < self._offset
            if not is_new and found.st_size == self._offset:
                return False
            if is_new:
                self._forget()
                self._file_id = (found.st_dev, found.st_ino)
            file.seek(self._offset)
            while chunk := file.read(_CHUNK_BYTES):
                self._offset += len(chunk)
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    self._add(line)
        return True

    def _add(self, line: bytes) -> None:
        if not line.strip():
            return
        row = _parse(line)
        if row is None:
            self.num_damaged += 1
            return
        for name, value in row.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = array("d")
            if len(column) < self._num_rows:
                column.extend([np.nan] * (self._num_rows - len(column)))
            column.append(_number(value))
        self._num_rows += 1

    def table(self) -> dict[str, np.ndarray]:
        """Columns by metric, in the order of the file, at steps that strictly ascend.

        Of rows with the same step, and of steps that were done again, the last ones count. Includes a last line
        without a line break if it is complete.
        """
        last = _parse(self._rest)
        num_rows = self._num_rows + (last is not None)
        table = {}
        for name in [*self._columns, *(key for key in last or {} if key not in self._columns)]:
            values = np.full(num_rows, np.nan)
            known = self._columns.get(name, array("d"))
            values[: len(known)] = known
            if last is not None and name in last:
                values[-1] = _number(last[name])
            table[name] = values
        if not table:
            return {}
        steps = table["step"]
        later = np.minimum.accumulate(steps[::-1])[::-1]  # the lowest step from each row on
        kept = np.append(steps[:-1] < later[1:], True)
        return table if kept.all() else {name: values[kept] for name, values in table.items()}


def _parse(line: bytes) -> dict[str, Any] | None:
    """The row in a line; None if the line is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("step"), int) and 0 <= row["step"] < 1 << 32
    return row if is_row else None


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    return float("nan")
