"""Why a run should save and leave before its end: a signal, a STOP file, its time being up, or a disk that is full."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

from pydantic import Field

from xlpretrain.schema import Section

StopReason = Literal["signal", "time", "user", "disk"]
STOP_REASONS: tuple[StopReason, ...] = ("user", "signal", "time", "disk")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Which of them say that time is running out, and no more: what they are not told to may be finished."""
_LOOK_EVERY_S = 0.5


class StopConfig(Section):
    """When a run ends before its last step."""

    time_budget_s: float | None = Field(None, gt=0)
    """Seconds after its start at which a run saves and leaves with exit code 75 (default: never)."""
    grace_s: int = Field(600, gt=0)
    """Seconds that the launcher gives the ranks to save after a signal, before it kills them."""
    patience: int | None = Field(None, gt=0)
    """Evaluations in a row that are no better than the best one (eval.best) after which a run is finished (default: it
    goes on to max_steps)."""
    unwritable_s: float = Field(300, gt=0)
    """Seconds for which metrics.jsonl or status.json may be unwritable; after them the run saves and leaves with exit
    code 75, as soon as it can save."""
    max_nonfinite_steps: int = Field(5, gt=0)
    """Steps in a row whose loss or gradient is not finite after which the run fails."""


def hold_back_warnings() -> None:
    """Let warnings wait until the run listens: while it still imports and builds, they would end the process.

    To be called before anything starts a thread, which would hear what this one does not.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)


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
    def listening(self) -> Iterator[None]:
        """Turn `SIGNALS` into a request for as long as the context lasts; held-back ones, too."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signalled = True

        previous = {number: signal.signal(number, note) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
