"""Work spread over processes, its results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from xlpretrain.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], tasks: Iterable[T], *, workers: int) -> Iterator[R]:
    """`function` of every task, in their order, whatever the number of workers. One worker is this process.

    Raises `DataError` if a worker process is killed, most often for want of memory.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    # spawn: the parent may hold threads, and forking those can deadlock.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent)
    try:
        yield from pool.map(function, tasks)
    except BrokenProcessPool:
        raise DataError(f"a worker process died (out of memory?); try fewer workers than {workers}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """A killed parent would otherwise leave its workers waiting for ever."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
