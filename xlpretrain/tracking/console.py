"""Standard output and error that cannot end or block the process when they fail or hang. Torch-free."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PATIENCE_S = 1.0
_MISSING = b"\n(lines are missing here: the console was blocked for a while)\n"


def outlive_console() -> None:
    """Keep this process running if its console fails: a closed terminal or pipe, a full disk, or one that hangs.

    For programs whose work matters more than their output. Streams that were already replaced are left alone.
    """
    for descriptor in range(3):
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # else the next opened file would get this descriptor and receive the output
    if sys.stdout is sys.__stdout__:
        sys.stdout = _outliving(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _outliving(sys.stderr, 2)


def format_duration(seconds: float) -> str:
    """Format seconds as in "42 s", "5 min", "3 h 20 min" and "2 d 4 h"."""
    for length, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} {seconds % length // part:.0f} {small}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _outliving(stream: TextIO | None, descriptor: int) -> TextIO:
    with suppress(OSError, ValueError, AttributeError):
        stream.flush()  # type: ignore[union-attr]
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # Characters that the console cannot encode are escaped instead of raising.
    return io.TextIOWrapper(
        io.BufferedWriter(_Console(descriptor)), encoding, errors="backslashreplace", line_buffering=True
    )


class _Console(io.RawIOBase):
    """A file descriptor. Output that it does not accept within `_PATIENCE_S` is dropped."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._is_stuck = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer) -> int:
        """Write `data`; always returns its full size, even if some was dropped."""
        content = bytes(data)
        with suppress(OSError):
            if self._is_stuck and self._is_ready(0.0):
                self._is_stuck = False
                os.write(self._descriptor, _MISSING)
            rest = content
            while rest and not self._is_stuck:
                if self._is_ready(_PATIENCE_S):
                    rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]  # atomic for a pipe
                else:
                    self._is_stuck = True
        return len(content)

    def _is_ready(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(1000 * timeout_s))
