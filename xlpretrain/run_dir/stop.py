"""Requests to save and exit early: a signal, a STOP file, the time budget, or a full disk."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

StopReason = Literal["signal", "time", "user", "disk"]
STOP_REASONS: tuple[StopReason, ...] = ("user", "signal", "time", "disk")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SOFT_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that only announce the time limit, so that a step may finish first."""
_LOOK_EVERY_S = 0.5


def block_signals() -> None:
    """Block `SOFT_SIGNALS` until the handlers are installed; before that, they would kill the process.

    Call it before any thread starts, since a thread with unblocked signals would receive them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SOFT_SIGNALS)


class StopRequest:
    """This rank's stop requests. The training loop makes ranks agree on them at a step boundary."""

    def __init__(self, *, stop_file: Path, time_budget_s: float | None):
        self._stop_file = stop_file
        self._deadline = None if time_budget_s is None else time.monotonic() + time_budget_s
        self._signalled = False
        self._looked_at = float("-inf")
        self._file_seen = False

    def reason(self) -> StopReason | None:
        """Reason to stop, if any. Cheap: checks for the file at most twice a second."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at, self._file_seen = now, self._stop_file.exists()
        if self._file_seen:
            return "user"
        if self._signalled:
            return "signal"
        return "time" if self._deadline is not None and now >= self._deadline else None

    @contextmanager
    def install_handlers(self) -> Iterator[None]:
        """Turn `STOP_SIGNALS` into a stop request within the context, including signals blocked before."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signalled = True

        previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SOFT_SIGNALS)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
