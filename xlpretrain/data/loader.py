"""Rows into batches, one step ahead of the device."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from xlpretrain.data.stream import Row, RowSource

B_co = TypeVar("B_co", covariant=True)
_AHEAD = 2  # steps; reading and collating a step costs far less than training on it


class Collate(Protocol[B_co]):
    """Rows into one micro-batch."""

    def __call__(self, rows: Sequence[Row]) -> B_co: ...


@dataclass(frozen=True)
class Loader(Generic[B_co]):
    """The micro-batches of one rank. A position is an argument, not hidden state.

    micro_batches: the streams of each micro-batch of this rank.
    """

    rows: RowSource
    collate: Collate[B_co]
    micro_batches: Sequence[range]

    def step(self, step: int) -> list[B_co]:
        """The micro-batches of one step. Raises `DataError` if a shard is damaged."""
        return [self.collate([self.rows.row(step=step, stream=s) for s in streams]) for streams in self.micro_batches]

    def steps(self, *, start: int, stop: int | None = None) -> Generator[list[B_co]]:
        """The micro-batches of steps start, start + 1, ..., read ahead by a thread.

        A thread and not processes: a batch from a worker process costs 35 times as much as one read in place.
        """
        steps = itertools.count(start) if stop is None else iter(range(start, stop))
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            pending = deque(pool.submit(self.step, s) for s in itertools.islice(steps, _AHEAD))
            while pending:
                batches = pending.popleft().result()
                pending.extend(pool.submit(self.step, s) for s in itertools.islice(steps, 1))
                yield batches
