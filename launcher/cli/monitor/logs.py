"""Print and follow a run's job and rank logs: `xlpretrain logs`. Torch-free."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from xlpretrain.errors import LaunchError
from xlpretrain.run_dir.layout import RunDir

_POLL_S = 0.3
_TAIL_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


def files(run: RunDir, rank: int | None) -> list[Path]:
    """The log files to show: of the job and rank 0, or of one rank."""
    if rank is not None:
        return [run.rank_log(rank)]
    return [run.job_log, run.rank_log(0)]


def show(run: RunDir, *, rank: int | None, num_lines: int, follow: bool) -> None:
    """Print the last lines of the logs; with `follow`, also new output until Ctrl-C.

    num_lines: number of lines per log; 0: all. Raises `LaunchError` without `follow` if there is no log yet.
    """
    logs = [_Log(path) for path in files(run, rank)]
    if not follow and not any(log.path.exists() for log in logs):
        raise LaunchError(_nothing(run, logs))
    printer = _Printer(with_names=len(logs) > 1)
    try:
        for log in logs:
            printer.print(log.path, log.last_lines(num_lines))
        while follow:
            time.sleep(_POLL_S)
            for log in logs:
                while more := log.read_on():
                    printer.print(log.path, more)
    except KeyboardInterrupt:
        pass


class _Log:
    """A growing log file, which may not exist yet and may be replaced."""

    def __init__(self, path: Path):
        self.path = path
        self._offset, self._inode = 0, -1

    def last_lines(self, num_lines: int) -> bytes:
        """The last lines of the current file; 0: all of them."""
        with suppress(OSError), self.path.open("rb") as file:
            size = file.seek(0, 2)
            start = 0 if num_lines == 0 else max(0, size - _TAIL_BYTES)
            file.seek(start)
            data = file.read(size - start)
            self._offset, self._inode = size, self.path.stat().st_ino
            return data if num_lines == 0 else b"".join(data.splitlines(keepends=True)[-num_lines:])
        return b""

    def read_on(self) -> bytes:
        """Text appended since the last read, up to a limit."""
        with suppress(OSError), self.path.open("rb") as file:
            now = self.path.stat()
            if now.st_ino != self._inode or now.st_size < self._offset:
                self._offset, self._inode = 0, now.st_ino
            file.seek(self._offset)
            data = file.read(_CHUNK_BYTES)
            self._offset += len(data)
            return data
        return b""


class _Printer:
    """Prints lines, with a header whenever the log changes."""

    def __init__(self, *, with_names: bool):
        self._with_names = with_names
        self._last: Path | None = None

    def print(self, path: Path, data: bytes) -> None:
        if not data:
            return
        if self._with_names and path != self._last:
            sys.stdout.write(f"{'' if self._last is None else chr(10)}==> {path} <==\n")
        self._last = path
        sys.stdout.flush()
        sys.stdout.buffer.write(data)  # undecoded: ranks may write any bytes
        sys.stdout.buffer.flush()


def _nothing(run: RunDir, logs: Sequence[_Log]) -> str:
    wanted = " or ".join(log.path.name for log in logs)
    there = sorted(path.name for path in run.logs.glob("*.log")) if run.logs.is_dir() else []
    if there:
        return f"{run.logs}: no {wanted}; found {', '.join(there[:8])}{' ...' if len(there) > 8 else ''}"
    return f"{run.logs}: no {wanted} yet; logs appear when the run starts (-f waits for them)"
