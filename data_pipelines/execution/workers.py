"""Work spread over processes."""

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
"""Workers are forked from a process of their own: this one may hold threads, and forking those can deadlock."""


class WorkerDiedError(DataError):
    """No fault of the data: what is done is worth keeping."""


class Workers:
    """Processes that work off tasks. One worker is this process.

    Raises `WorkerDiedError` from what it gives if a worker process is killed, most often for want of memory.
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
            if isinstance(error, KeyboardInterrupt):  # tasks are done whole or not at all: none is waited for
                for process in multiprocessing.active_children():
                    process.terminate()
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`function` of every task, in their order."""
        if self._number == 1:
            yield from map(function, tasks)
            return
        with _telling_of_deaths(self._number):
            yield from self._start().map(function, tasks)

    def finish(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`function` of every task, as they are done."""
        if self._number == 1:
            yield from map(function, tasks)
            return
        with _telling_of_deaths(self._number):
            pool = self._start()
            for future in as_completed([pool.submit(function, task) for task in tasks]):
                yield future.result()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            start_server()
            self._pool = ProcessPoolExecutor(self._number, mp_context=_CONTEXT, initializer=_follow_parent)
        return self._pool


def start_server() -> None:
    """Let the process from which workers are forked import what they need, while this one does something else."""
    _CONTEXT.set_forkserver_preload(["data_pipelines.build.pipeline"])
    forkserver.ensure_running()


@contextmanager
def _telling_of_deaths(number: int) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise WorkerDiedError(f"a worker process died (out of memory?); try fewer workers than {number}") from None


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent. A killed one would otherwise leave its workers waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
