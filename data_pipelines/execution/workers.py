"""A pool of worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self, TypeVar

from xlpretrain.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


_CONTEXT = multiprocessing.get_context("forkserver")
"""Workers are forked from a separate server process: this one may have threads, and forking those can deadlock."""


class WorkerDiedError(DataError):
    """A worker process died. The data are not at fault, so finished tasks are kept."""


class Workers:
    """A pool of worker processes. With one worker, tasks run in this process.

    The iterators raise `WorkerDiedError` if a worker process is killed, most often because memory ran out.
    """

    def __init__(self, number: int):
        self._number = number
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            if isinstance(error, KeyboardInterrupt):  # tasks are atomic: do not wait for them
                for process in multiprocessing.active_children():
                    process.terminate()
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Apply `function` to every task; yields the results in the order of the tasks."""
        if self._number == 1:
            yield from map(function, tasks)
            return
        with _reporting_deaths(self._number):
            yield from self._start().map(function, tasks)

    def finish(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Apply `function` to every task; yields the results as they complete."""
        if self._number == 1:
            yield from map(function, tasks)
            return
        with _reporting_deaths(self._number):
            pool = self._start()
            for future in as_completed([pool.submit(function, task) for task in tasks]):
                yield future.result()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            start_server()
            self._pool = ProcessPoolExecutor(self._number, mp_context=_CONTEXT, initializer=_follow_parent)
        return self._pool


def start_server() -> None:
    """Start the fork server, which preloads the workers' modules in the background."""
    _CONTEXT.set_forkserver_preload(["data_pipelines.build.pipeline"])
    forkserver.ensure_running()


@contextmanager
def _reporting_deaths(number: int) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise WorkerDiedError(f"a worker process died (out of memory?); use fewer than {number} workers") from None


def _follow_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent dies (idle workers would wait forever)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
