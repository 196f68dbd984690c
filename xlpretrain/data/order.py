"""The order in which a corpus is read: arithmetic without state, so that any position costs the same to find.

A run has `num_streams` streams for its whole life, and one step takes one row of each. What stream `s` reads at step
`t` follows from (index, seed, t, s) alone. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

_MASK64 = (1 << 64) - 1
_ROUNDS = 4


def mix(*values: int) -> int:
    """A 64-bit hash of integers (the finalizer of SplitMix64, chained): keys for permutations and generators."""
    state = 0
    for value in values:
        state = (state + 0x9E3779B97F4A7C15 + (value & _MASK64)) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def permute(index: int, *, size: int, key: int) -> int:
    """Where a keyed bijection of [0, size) sends `index`.

    A balanced Feistel network over the next even power of two, walked until it falls below `size` (under 4 tries on
    average): Black and Rogaway, "Ciphers with arbitrary finite domains" (2002).
    """
    if not 0 <= index < size:
        raise IndexError(f"index {index} is outside [0, {size})")
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (mix(key, i, right) & mask)
        index = (left << half) | right
        if index < size:
            return index


@dataclass(frozen=True)
class Place:
    """Where a stream stands: row `row` of block `block`, in pass `epoch` over the corpus."""

    epoch: int
    block: int
    row: int


class Order(Protocol):
    """What each stream reads at each step."""

    def place(self, *, step: int, stream: int) -> Place:
        """What `stream` reads at `step`."""

    def rows_behind(self, *, step: int, stream: int) -> int:
        """How many rows before this one the stream has read of the same block: what its memory may hold."""

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many rows are read as the corpus has."""


@dataclass(frozen=True)
class Contiguous:
    """Each stream reads one whole block row after row, then its next: the order for objectives with memory.

    No table grows with the number of blocks.

    Streams start staggered over a block, so that they do not change block together. Visit k = u * num_streams + s
    (the u-th block of stream s) is block permutation(epoch)[k % num_blocks] of epoch k // num_blocks: every block is
    visited exactly once an epoch.
    """

    num_blocks: int
    rows_per_block: int
    num_streams: int
    seed: int

    def place(self, *, step: int, stream: int) -> Place:
        """What `stream` reads at `step`."""
        visit, row = divmod(step + self._stagger(stream), self.rows_per_block)
        epoch, index = divmod(visit * self.num_streams + stream, self.num_blocks)
        return Place(epoch, permute(index, size=self.num_blocks, key=mix(self.seed, epoch)), row)

    def rows_behind(self, *, step: int, stream: int) -> int:
        """How many rows before this one the stream has read of the same block: what its memory may hold."""
        return min(step, (step + self._stagger(stream)) % self.rows_per_block)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many rows are read as the corpus has."""
        return self.num_blocks * self.rows_per_block / self.num_streams

    def _stagger(self, stream: int) -> int:
        return stream * self.rows_per_block // self.num_streams


class Shuffled:
    """Rows in random order, for objectives without memory: step t and stream s take sample k = t * num_streams + s.

    Blocks are permuted anew for each epoch, and rows within each window of `window_blocks` consecutive blocks of that
    order: a run touches few blocks at a time, which it knows ahead. An epoch costs one table of a number per block.
    """

    def __init__(self, rows_of_block: np.ndarray, *, num_streams: int, seed: int, window_blocks: int):
        """`rows_of_block`: how many rows each block has."""
        self.num_rows = int(rows_of_block.sum())
        self.num_streams = num_streams
        self.rows_of_block, self.window_blocks, self._seed = rows_of_block, window_blocks, seed
        self._cached_epoch = lru_cache(2)(self._permute_blocks)  # an epoch's last step reads two

    def place(self, *, step: int, stream: int) -> Place:
        """What `stream` reads at `step`."""
        epoch, index = divmod(step * self.num_streams + stream, self.num_rows)
        blocks, starts = self._cached_epoch(epoch)
        window = (int(starts.searchsorted(index, side="right")) - 1) // self.window_blocks
        first = window * self.window_blocks
        last = min(first + self.window_blocks, len(blocks))
        low, high = int(starts[first]), int(starts[last])
        index = low + permute(index - low, size=high - low, key=mix(self._seed, epoch, window))
        at = int(starts.searchsorted(index, side="right")) - 1
        return Place(epoch, int(blocks[at]), index - int(starts[at]))

    def rows_behind(self, *, step: int, stream: int) -> int:
        """None: what was read before is of no use."""
        return 0

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many rows are read as the corpus has."""
        return self.num_rows / self.num_streams

    def _permute_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in the order of an epoch, and at which row each of them starts, the end of the last one too."""
        blocks = np.argsort(mix_each(np.arange(len(self.rows_of_block)), mix(self._seed, epoch)), kind="stable")
        return blocks, np.concatenate([[0], np.cumsum(self.rows_of_block[blocks])])


def mix_each(values: np.ndarray, key: int) -> np.ndarray:
    """A 64-bit hash of each value under a key (the finalizer of SplitMix64)."""
    with np.errstate(over="ignore"):
        state = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(key)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
