"""Guarded trackers: each runs on its own thread and is switched off at its first failure, so none can harm a run."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from xlpretrain.tracking.base import TrackedRun, Tracker, TrackerConfig, describe_failure

_START_S = 30.0  # W&B and MLflow take 2 s to import and connect; after 30 s training starts without waiting
_CLOSE_S = 20.0
_MAX_WAITING = 10_000  # rows of about 30 numbers: some 30 MB
logger = logging.getLogger(__name__)

Row = Mapping[str, float | int]


@dataclass(frozen=True)
class _GoBack:
    step: int


@dataclass(frozen=True)
class _Close:
    state: str


class GuardedTracker:
    """A tracker on its own thread. Calls do not wait for it, except for a bounded time at the start and at the end.

    An exception, a call that takes longer than its `timeout_s`, or a backlog switches it off, with one warning.

    Attributes:
        url: web page of the run; empty if there is none, or until the tracker has started.
    """

    def __init__(self, config: TrackerConfig, run: TrackedRun, *, history: Sequence[Row] = ()):
        """history: steps from `run.next_step` up to the resumed step, which the tracker must log again."""
        self.url = ""
        self._label = config.label
        self._queue: SimpleQueue[Row | _GoBack | _Close] = SimpleQueue()
        self._told = run.next_step - 1
        self._handed_on: deque[tuple[int, int, float]] = deque()  # (number of rollbacks before, step, time)
        self._ways_back = 0
        self._busy_since: float | None = None
        self._timeout_s, self._buffer_s = config.timeout_s, config.buffer_s
        self._is_off, self._lock = False, Lock()
        self._is_closed = False
        self._started, self._ended = Event(), Event()
        thread = Thread(target=self._work, args=(config, run, history), daemon=True, name=f"tracker-{config.type}")
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            self._switch_off(str(error))
        else:
            self._started.wait(_START_S)

    @property
    def told(self) -> int:
        """The last step up to which nothing has to be logged again, even if this process is killed."""
        while self._handed_on:
            ways_back, step, at = self._handed_on[0]
            if not self._is_closed and time.monotonic() - at < self._buffer_s:
                break
            self._handed_on.popleft()
            if ways_back == self._ways_back:
                self._told = step
        return self._told

    def log(self, metrics: Row) -> None:
        """Queue the metrics of one step for the tracker."""
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > self._timeout_s:
            self._switch_off(f"no answer in {self._timeout_s:.0f} s")
        elif self._queue.qsize() >= _MAX_WAITING:
            self._switch_off(f"{_MAX_WAITING} steps behind")
        if not self._is_off:
            self._queue.put(metrics)

    def go_back(self, step: int) -> None:
        """Queue a rollback: the tracker discards the steps after `step`."""
        self._told = min(self.told, step)
        self._ways_back += 1
        self._queue.put(_GoBack(step))

    def close(self, state: str) -> None:
        """Queue the close of the tracker. Afterwards only `wait` and `told` may be used."""
        self._queue.put(_Close(state))

    def wait(self, timeout_s: float) -> None:
        """Wait until the tracker has finished; the next attempt resends what it has not logged by then."""
        if not self._is_off and not self._ended.wait(timeout_s):
            self._switch_off(f"still at work {_CLOSE_S:.0f} s after the end; the next attempt resends the rest")

    def _work(self, config: TrackerConfig, run: TrackedRun, history: Iterable[Row]) -> None:
        try:
            tracker = self._timed(partial(config.build, run))
            if tracker is None or self._is_off:
                self._is_off = True
                return
            self.url = tracker.url
            self._started.set()
            self._serve(tracker, history)
        except BaseException as error:  # SystemExit too
            self._switch_off(describe_failure(error))
        finally:
            self._started.set()
            self._ended.set()

    def _serve(self, tracker: Tracker, history: Iterable[Row]) -> None:
        ways_back, last = 0, self._told
        for row in history:
            if self._is_off:
                return
            self._timed(partial(tracker.log, row))
            last = int(row["step"])
        while not self._is_off:
            if self._queue.empty():
                self._timed(tracker.flush)
                self._handed_on.append((ways_back, last, time.monotonic()))
            item = self._queue.get()
            if isinstance(item, _GoBack):
                self._timed(partial(tracker.go_back, item.step))
                ways_back, last = ways_back + 1, item.step
            elif isinstance(item, _Close):
                self._timed(partial(tracker.close, item.state))
                self._handed_on.append((ways_back, last, time.monotonic()))
                self._is_closed = True
                return
            else:
                self._timed(partial(tracker.log, item))
                last = int(item["step"])

    def _timed(self, call: Callable[[], Any]) -> Any:
        self._busy_since = time.monotonic()
        try:
            return call()
        finally:
            self._busy_since = None

    def _switch_off(self, reason: str) -> None:
        with self._lock:
            if self._is_off:
                return
            self._is_off = True
        logger.warning("%s failed and is off for the rest of this attempt: %s", self._label, reason)


class Trackers:
    """All trackers of a run."""

    def __init__(
        self,
        configs: Sequence[TrackerConfig],
        run: TrackedRun,
        *,
        rows: Sequence[Row],
        told: Mapping[str, int],
    ):
        """Start the trackers.

        Args:
            run: the run; its `next_step` is set for each tracker.
            rows: the metrics up to the step that the run continues from.
            told: the last step that each tracker, by its type, is known to have kept.
        """
        newest = int(rows[-1]["step"]) if rows else 0
        self._told = {name: min(step, newest) for name, step in told.items()}
        self._trackers = {}
        for config in configs:
            known = self._told.get(config.type, 0)
            history = [row for row in rows if row["step"] > known]
            self._trackers[config.type] = GuardedTracker(config, replace(run, next_step=known + 1), history=history)

    @property
    def told(self) -> dict[str, int]:
        """The last step that each tracker, by its type, is known to have kept."""
        return self._told | {name: tracker.told for name, tracker in self._trackers.items()}

    @property
    def url(self) -> str:
        """Web page of the run in the first tracker that has one; empty if none has."""
        return next((tracker.url for tracker in self._trackers.values() if tracker.url), "")

    def log(self, metrics: Row) -> None:
        """Log the metrics of one step to all trackers."""
        for tracker in self._trackers.values():
            tracker.log(metrics)

    def go_back(self, step: int) -> None:
        """Discard the steps after `step` in all trackers."""
        self._told = {name: min(known, step) for name, known in self._told.items()}
        for tracker in self._trackers.values():
            tracker.go_back(step)

    def close(self, state: str) -> None:
        """Close all trackers, within 20 seconds in total."""
        for tracker in self._trackers.values():
            tracker.close(state)
        deadline = time.monotonic() + _CLOSE_S
        for tracker in self._trackers.values():
            tracker.wait(max(0.0, deadline - time.monotonic()))
