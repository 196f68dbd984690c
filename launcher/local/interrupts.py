"""Signal handling of the local launcher: signals are forwarded to the ranks, which save and exit."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Interrupts:
    """A context that forwards signals to the ranks, which save and exit. Use it on the main thread.

    The first Ctrl-C asks the ranks to exit, the second prints what killing them now would lose, the third kills them.

    Attributes:
        first: number of the first signal received; 0: none yet.
    """

    def __init__(self, *, grace_s: float, cost: Callable[[], str]):
        """grace_s: seconds from the first signal until ranks are killed. cost: describes what killing them loses."""
        self.first = 0
        self._grace_s, self._cost = grace_s, cost
        self._deadline = float("inf")
        self._times_asked = 0
        self._signalled: set[int] = set()
        self._previous: dict[signal.Signals, Any] = {}
        self._terminal = sys.stderr  # redirected while torchrun runs

    def __enter__(self) -> Self:
        for number in SIGNALS:
            # Under nohup, SIGHUP stays ignored.
            if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN):
                self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def look(self) -> None:
        """Signal ranks that started late, and kill those that exceed the grace time. Call it periodically."""
        if self.first:
            self._forward(self.first, self._signalled)
        if time.monotonic() > self._deadline:
            self._print(f"the ranks did not exit within {self._grace_s:g} s (stop.grace_s): killing them")
            self._deadline = float("inf")
            self._kill()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.first:
            self.first, self._deadline = number, time.monotonic() + self._grace_s
        if number == signal.SIGINT:
            self._times_asked += 1
            if self._times_asked > 2:
                self._print("killing the ranks")
                return self._kill()
            if self._times_asked == 2:
                return self._print(f"still saving; press Ctrl-C again to kill the run now and lose {self._cost()}")
            self._print("Ctrl-C: saving and exiting")
        self._signalled.clear()
        return self._forward(number, self._signalled)

    def _forward(self, number: int, told: set[int]) -> None:
        """Send a signal to ranks that did not get it yet. SIGINT becomes SIGTERM: no traceback from starting ranks."""
        for pid in _children() - told:
            told.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if number == signal.SIGINT else number)

    def _kill(self) -> None:
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _print(self, message: str) -> None:
        # The terminal may be closed (the reason for the signal), or in the middle of a write.
        with suppress(OSError, ValueError, RuntimeError):
            print(f"{chr(10) if self._terminal.isatty() else ''}{message}", file=self._terminal, flush=True)


def _children() -> set[int]:
    """PIDs of the live child processes: the ranks."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            # The process name may contain spaces and brackets; state and parent follow the last bracket.
            state, parent = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state not in "ZX":
                found.add(int(path.parent.name))
    return found
