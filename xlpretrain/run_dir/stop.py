"""Reasons to save and exit early: a signal, a STOP file, the end of the time budget, or a full disk."""

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
"""Signals that only announce the end of the time, so that work may be finished first."""
_LOOK_EVERY_S = 0.5


def block_signals() -> None:
    """Let warnings wait until the run listens: while it still imports and builds, they would end the process.

    To be called before anything starts a thread, which would hear what this one does not.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SOFT_SIGNALS)


class StopRequest:
    """This rank's view: has something asked the run to stop? Ranks agree on it at a step boundary, elsewhere."""

    def __init__(self, *, stop_file: Path, time_budget_s: float | None):
        self._stop_file = stop_file
        self._deadline = None if time_budget_s is None else time.monotonic() + time_budget_s
        self._signalled = False
        self._looked_at = float("-inf")
        self._file_seen = False

    def reason(self) -> StopReason | None:
        """The reason, if any. Cheap: the file is looked for at most twice a second."""
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
        """Turn `STOP_SIGNALS` into a request for as long as the context lasts; held-back ones, too."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signalled = True

        previous = {number: signal.signal(number, note) for number in STOP_SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SOFT_SIGNALS)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
