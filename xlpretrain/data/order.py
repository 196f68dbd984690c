"""The order in which a corpus is read: arithmetic without state, so that any position costs the same to find.

A run has `num_streams` streams for its whole life, and one step takes one row of each. What stream `s` reads at step
`t` follows from (index, seed, t, s) alone. Torch-free; no table grows with the number of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Contiguous:
    """Each stream reads one whole block row after row, then its next: the order for objectives with memory.

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
