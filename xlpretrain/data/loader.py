"""Collates samples into batches, ahead of the training step."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

from xlpretrain.data.samples import MicroBatchSamples, Sample, SampleSource, empty_sample
from xlpretrain.errors import DamagedDataError

B_co = TypeVar("B_co", covariant=True)
_FETCHED_AHEAD = 64  # steps; remote blocks take longer
_AHEAD = 2  # steps; reading and collating takes far less time than training


@runtime_checkable
class Collate(Protocol[B_co]):
    """Collates samples into one micro-batch."""

    def __call__(self, samples: Sequence[Sample]) -> B_co: ...


@dataclass(frozen=True)
class Loader(Generic[B_co]):
    """The micro-batches of one rank. The loader has no position: steps are passed as arguments.

    micro_batches: the streams of each micro-batch of this rank. skip_damage: replace samples that cannot be read from
    a damaged block by empty ones. That depends on the content of the block alone, so all ranks agree.

    Attributes:
        damage: for each step that was read with such samples, one message per sample.
    """

    samples: SampleSource
    collate: Collate[B_co]
    micro_batches: Sequence[range]
    skip_damage: bool = False
    damage: dict[int, list[str]] = field(default_factory=dict)

    def step(self, step: int) -> list[B_co]:
        """The micro-batches of one step. Raises `DataError` if a shard is damaged."""
        self.damage.pop(step, None)  # may be read again after a loss spike
        read = self._read_or_skip if self.skip_damage else self.samples.sample
        return [
            self.collate(
                MicroBatchSamples((read(step=step, stream=s) for s in streams), self.samples.part(streams.start))
            )
            for streams in self.micro_batches
        ]

    def _prefetching(self, steps: Iterator[int]) -> Iterator[int]:
        """The same steps, with the blocks of later steps fetched in the background."""
        ahead = -1
        for step in steps:
            for coming in range(max(ahead + 1, step), step + _FETCHED_AHEAD + 1):
                for stream in itertools.chain(*self.micro_batches):
                    self.samples.prefetch(step=coming, stream=stream)
            ahead = step + _FETCHED_AHEAD
            yield step

    def _read_or_skip(self, *, step: int, stream: int) -> Sample:
        try:
            return self.samples.sample(step=step, stream=stream)
        except DamagedDataError as error:
            self.damage.setdefault(step, []).append(str(error))
            return empty_sample(stream)

    def steps(self, *, start: int, stop: int | None = None) -> Generator[list[B_co]]:
        """The micro-batches of steps start, start + 1, ..., read ahead by a thread.

        A thread, because a batch from a worker process costs 35 times as much.
        """
        steps = itertools.count(start) if stop is None else iter(range(start, stop))
        if self.samples.is_remote:
            steps = self._prefetching(steps)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            pending = deque(pool.submit(self.step, s) for s in itertools.islice(steps, _AHEAD))
            while pending:
                batches = pending.popleft().result()
                pending.extend(pool.submit(self.step, s) for s in itertools.islice(steps, 1))
                yield batches
