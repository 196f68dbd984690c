"""The places of a run's streams in contiguous order, over stages with other batch sizes and sample lengths. Torch-free.

A stage reads `num_streams` streams, in samples that advance by `new_tokens`; the other streams keep their places.
Everything about a stage follows from the stages before it and from itself, so a run and its forks agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class StreamPlaces:
    """The places of all streams at one moment: arrays over the streams.

    block_tokens: tokens of a block. visits: visit of each stream, numbered in the order in which visits begin (-1
    before a stream's first). offsets: tokens of the block that the stream is past. in_memory: tokens just before that
    place that it has read without a gap. num_begun: visits that have begun.
    """

    block_tokens: int
    visits: np.ndarray
    offsets: np.ndarray
    in_memory: np.ndarray
    num_begun: int

    @classmethod
    def at_start(cls, *, total: int, num_streams: int, new_tokens: int, block_tokens: int) -> StreamPlaces:
        """The start of a run whose first stage reads `num_streams` of `total` streams.

        Those begin at staggered positions of a block, so that they do not change blocks together. Higher streams begin
        later in their block and reach the next one earlier, so their visits are the first ones.
        """
        streams, samples = np.arange(total), math.ceil(block_tokens / new_tokens)
        active = streams < num_streams
        offsets = np.minimum(streams * samples // num_streams * new_tokens, block_tokens)
        return cls(
            block_tokens,
            visits=np.where(active, num_streams - 1 - streams, -1),
            offsets=np.where(active, offsets, block_tokens),
            in_memory=np.zeros(total, np.int64),
            num_begun=num_streams,
        )


class StreamVisit(NamedTuple):
    """A stream's sample: number `sample` of visit `visit`, numbered in the order in which visits begin.

    in_memory: tokens just before the sample that the stream has read without a gap.
    """

    visit: int
    sample: int
    in_memory: int


class ContiguousStage:
    """A stage of contiguous reading, entered at given places. Every look-up takes constant time.

    A stream goes on at the next multiple of `new_tokens` in its block, or with a new block if there is none.

    Attributes:
        skipped_tokens: tokens that the streams skip on entry, fewer than `new_tokens` each.
    """

    def __init__(self, entry: StreamPlaces, *, num_streams: int, new_tokens: int):
        self.entry, self.num_streams, self._new_tokens = entry, num_streams, new_tokens
        self.samples_per_block = math.ceil(entry.block_tokens / new_tokens)
        offsets = entry.offsets[:num_streams]
        self._samples = -(-offsets // new_tokens)  # the next one of each stream; samples_per_block if in a new block
        skipped = np.minimum(self._samples * new_tokens, entry.block_tokens) - offsets
        self.skipped_tokens = int(skipped.sum())
        self._in_memory = np.where(skipped > 0, 0, entry.in_memory[:num_streams])
        self._steps_left = self.samples_per_block - self._samples  # in the block that the stream is in
        by_time = np.lexsort((-np.arange(num_streams), self._steps_left))
        self._rank = np.empty(num_streams, np.int64)  # in the order in which the streams begin their next blocks
        self._rank[by_time] = np.arange(num_streams)

    def visit(self, *, step: int, stream: int) -> StreamVisit:
        """The sample of a stream, `step` steps after the stage has begun."""
        left = int(self._steps_left[stream])
        if step < left:
            in_memory = int(self._in_memory[stream]) + step * self._new_tokens
            return StreamVisit(int(self.entry.visits[stream]), int(self._samples[stream]) + step, in_memory)
        round_, sample = divmod(step - left, self.samples_per_block)
        visit = self.entry.num_begun + round_ * self.num_streams + int(self._rank[stream])
        return StreamVisit(visit, sample, sample * self._new_tokens)

    def after(self, steps: int) -> StreamPlaces:
        """The places of all streams `steps` steps after the stage has begun."""
        entry, count = self.entry, self.num_streams
        rounds = np.maximum(-(-(steps - self._steps_left) // self.samples_per_block), 0)  # new blocks of each stream
        samples = np.where(
            rounds == 0, self._samples + steps, steps - self._steps_left - (rounds - 1) * self.samples_per_block
        )
        visits, offsets, in_memory = entry.visits.copy(), entry.offsets.copy(), entry.in_memory.copy()
        newest = entry.num_begun + (rounds - 1) * count + self._rank
        visits[:count] = np.where(rounds == 0, visits[:count], newest)
        if steps:
            offsets[:count] = np.minimum(samples * self._new_tokens, entry.block_tokens)
            before = np.where(rounds == 0, self._in_memory + steps * self._new_tokens, samples * self._new_tokens)
            in_memory[:count] = before
        return StreamPlaces(entry.block_tokens, visits, offsets, in_memory, entry.num_begun + int(rounds.sum()))


def block_number(visit: int, *, num_streams: int, reversed_below: int | None) -> int:
    """The number of a visit's block in the order of all blocks, a bijection.

    In the rounds that the first stage has begun, stream s reads block u * num_streams + s, although higher streams
    begin their visits earlier; so the numbers are reversed within a round. Later ones count visits as they begin.

    Args:
        visit: number in the order in which visits begin.
        num_streams: of the first stage.
        reversed_below: number of visits in the rounds that the first stage has begun; None while it is the last one.
    """
    if reversed_below is not None and visit >= reversed_below:
        return visit
    return visit + num_streams - 1 - 2 * (visit % num_streams)
