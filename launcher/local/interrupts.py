"""Signals to the launcher of a run on this machine: the ranks are asked to end, and not killed by mistake."""

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
    """A context in which signals go to the ranks, which save and end. To be used on the main thread.

    Ctrl-C is heard three times: the first asks the ranks to end, the second says what ending them now would cost, and
    the third ends them now.

    Attributes:
        first: the number of the first signal; 0: none yet.
    """

    def __init__(self, *, grace_s: float, cost: Callable[[], str]):
        """grace_s: the time from the first signal until ranks are killed. cost: what that loses."""
        self.first = 0
        self._grace_s, self._cost = grace_s, cost
        self._deadline = float("inf")
        self._times_asked = 0
        self._told: set[int] = set()
        self._previous: dict[signal.Signals, Any] = {}
        self._terminal = sys.stderr  # torchrun's is another meanwhile

    def __enter__(self) -> Self:
        for number in SIGNALS:
            # nohup has a process ignore SIGHUP, and means it.
            if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN):
                self._previous[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def look(self) -> None:
        """Ask ranks that started late to end, and kill those that take too long. Call it now and then."""
        if self.first:
            self._forward(self.first, self._told)
        if time.monotonic() > self._deadline:
            self._say(f"the ranks have not ended within {self._grace_s:g} s (stop.grace_s): killing them")
            self._deadline = float("inf")
            self._kill()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.first:
            self.first, self._deadline = number, time.monotonic() + self._grace_s
        if number == signal.SIGINT:
            self._times_asked += 1
            if self._times_asked > 2:
                self._say("ending it now")
                return self._kill()
            if self._times_asked == 2:
                return self._say(f"it is still ending; to end it now loses {self._cost()}. Ctrl-C once more does that")
            self._say("Ctrl-C: saving what there is to save, and ending")
        self._told.clear()
        return self._forward(number, self._told)

    def _forward(self, number: int, told: set[int]) -> None:
        """Send a signal to the ranks that were not told yet. SIGINT as SIGTERM: no traceback while they still start."""
        for pid in _children() - told:
            told.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if number == signal.SIGINT else number)

    def _kill(self) -> None:
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _say(self, message: str) -> None:
        # The terminal may be gone, which may be what the signal is about; or it is being written to right now.
        with suppress(OSError, ValueError, RuntimeError):
            print(f"{chr(10) if self._terminal.isatty() else ''}{message}", file=self._terminal, flush=True)


def _children() -> set[int]:
    """The processes that this one has started and that have not ended: the ranks."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            # The name may hold spaces and brackets; after the last one: state, parent, ...
            state, parent = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state not in "ZX":
                found.add(int(path.parent.name))
    return found
