"""The order in which a corpus is read: stateless, with constant-time access to any position.

A run has a fixed number of streams, `num_streams`, and a step takes one sample of each. The sample of stream `s` at
step `t` depends on (index, seed, t, s) alone. Torch-free.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_MASK64 = (1 << 64) - 1
_ROUNDS = 4
_CHUNK = 1024


def hash_ints(*values: int) -> int:
    """A 64-bit hash of integers (chained SplitMix64 finalizers), used as key of permutations and generators."""
    state = 0
    for value in values:
        state = (state + 0x9E3779B97F4A7C15 + (value & _MASK64)) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def permute(index: int, *, size: int, key: int) -> int:
    """The image of `index` under a keyed bijection of [0, size).

    A balanced Feistel network over the next even power of two, walked until it falls below `size` (under 4 tries on
    average): Black and Rogaway, "Ciphers with arbitrary finite domains" (2002).
    """
    if not 0 <= index < size:
        raise IndexError(f"index {index} is outside [0, {size})")
    half = _half(size)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (hash_ints(key, i, right) & mask)
        index = (left << half) | right
        if index < size:
            return index


def _half(size: int) -> int:
    """Half the number of bits of the Feistel network for [0, size)."""
    return max(1, (max(size - 1, 1).bit_length() + 1) // 2)


class BlockPosition(NamedTuple):
    """The position of a sample: sample `sample` of block `block`, in pass `epoch` over the corpus."""

    epoch: int
    block: int
    sample: int


class BlockVisit(NamedTuple):
    """A stream's position within a visit: sample `sample` of visit `number`.

    Visits are numbered over all streams, from the start of the run. samples_read: samples of this visit that the stream
    has read before; less than `sample` only in the first visits of a run, which begin inside a block.
    """

    number: int
    sample: int
    samples_read: int


class Order(ABC):
    """The order of visits: the part of the corpus that each stream reads at each step."""

    num_streams: int

    @property
    @abstractmethod
    def num_visits(self) -> int:
        """Visits per epoch."""

    @property
    @abstractmethod
    def samples_per_visit(self) -> int:
        """Samples per visit."""

    @abstractmethod
    def visit(self, *, step: int, stream: int) -> BlockVisit:
        """The visit of `stream` at a step; the same for all corpora with samples and visits of equal length."""

    @abstractmethod
    def at(self, number: int, index: int) -> BlockPosition:
        """The position of sample `index` of visit `number`."""

    def position(self, *, step: int, stream: int) -> BlockPosition:
        """The position that `stream` reads at `step`."""
        visit = self.visit(step=step, stream=stream)
        return self.at(visit.number, visit.sample)

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps that read as many samples as the corpus has."""
        return self.num_visits * self.samples_per_visit / self.num_streams


@dataclass(frozen=True)
class Contiguous(Order):
    """Each stream reads whole blocks, sample by sample: the order for objectives with a memory.

    Memory use does not depend on the number of blocks. Streams start at staggered positions of a block, so that they do
    not change blocks together. Visit k = u * num_streams + s (the u-th block of stream s) reads block
    permutation(epoch)[k % num_blocks] of epoch k // num_blocks: every block is visited exactly once per epoch.
    """

    num_blocks: int
    samples_per_block: int
    num_streams: int
    seed: int

    @property
    def num_visits(self) -> int:
        """The number of blocks."""
        return self.num_blocks

    @property
    def samples_per_visit(self) -> int:
        """The samples per block."""
        return self.samples_per_block

    def visit(self, *, step: int, stream: int) -> BlockVisit:
        """The visit of `stream` at a step."""
        round_, index = divmod(step + stream * self.samples_per_block // self.num_streams, self.samples_per_block)
        return BlockVisit(round_ * self.num_streams + stream, index, samples_read=min(step, index))

    def at(self, number: int, index: int) -> BlockPosition:
        """The position of sample `index` of visit `number`."""
        return BlockPosition(*_block_of_visit(number, self.num_blocks, self.seed), index)


@lru_cache(1 << 14)  # looked up for each sample
def _block_of_visit(number: int, num_blocks: int, seed: int) -> tuple[int, int]:
    """The epoch and block of a visit."""
    epoch, index = divmod(number, num_blocks)
    return epoch, permute(index, size=num_blocks, key=hash_ints(seed, epoch))


class Shuffled(Order):
    """Samples in random order, for objectives without memory: step t and stream s take sample k = t * num_streams + s.

    Each epoch permutes the blocks, and then the samples within each window of `window_blocks` consecutive blocks, so
    that only a few blocks are in use at a time. The permutation takes one table with a number per block.
    """

    def __init__(self, samples_of_block: np.ndarray, *, num_streams: int, seed: int, window_blocks: int):
        """samples_of_block: number of samples in each block."""
        self.num_samples = int(samples_of_block.sum())
        self.num_streams = num_streams
        self.samples_of_block, self.window_blocks, self._seed = samples_of_block, window_blocks, seed
        self._cached_epoch = lru_cache(2)(self._permute_blocks)  # a step may span two epochs
        self._cached_positions = lru_cache(16)(self._find_positions)

    @property
    def num_visits(self) -> int:
        """The number of samples."""
        return self.num_samples

    @property
    def samples_per_visit(self) -> int:
        """Always 1."""
        return 1

    def visit(self, *, step: int, stream: int) -> BlockVisit:
        """The visit of `stream` at a step. A visit is a single sample."""
        return BlockVisit(step * self.num_streams + stream, sample=0, samples_read=0)

    def at(self, number: int, index: int) -> BlockPosition:
        """The position of the single sample of visit `number`."""
        epoch, index = divmod(number, self.num_samples)
        chunk, offset = divmod(index, _CHUNK)
        return self._cached_positions(epoch, chunk)[offset]

    def next_window_after(self, number: int, before: Shuffled) -> tuple[int, int]:
        """The visit with which this order goes on after the first `number` visits of `before`, over the same blocks.

        It is the first one of the next window of blocks of the same epoch, or the next one of all if all samples of
        the blocks are the same. Also returns how many visits of `before` are skipped.
        """
        if np.array_equal(self.samples_of_block, before.samples_of_block):
            return number, 0
        epoch, index = divmod(number, before.num_samples)
        (_, theirs), (_, ours) = before._cached_epoch(epoch), self._cached_epoch(epoch)
        windows = np.append(np.arange(0, len(self.samples_of_block), self.window_blocks), len(self.samples_of_block))
        first = windows[theirs[windows].searchsorted(index)]
        return epoch * self.num_samples + int(ours[first]), int(theirs[first]) - index

    def _find_positions(self, epoch: int, chunk: int) -> list[BlockPosition]:
        """The positions of `_CHUNK` samples, at little more than the cost of one."""
        blocks, starts = self._cached_epoch(epoch)
        samples = np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, self.num_samples))
        windows = (starts.searchsorted(samples, side="right") - 1) // self.window_blocks
        for window in np.unique(windows).tolist():
            first = window * self.window_blocks
            last = min(first + self.window_blocks, len(blocks))
            low, high, here = int(starts[first]), int(starts[last]), windows == window
            key = hash_ints(self._seed, epoch, window)
            samples[here] = low + permute_array(samples[here] - low, size=high - low, key=key)
        at = starts.searchsorted(samples, side="right") - 1
        found = zip(blocks[at].tolist(), (samples - starts[at]).tolist(), strict=True)
        return [BlockPosition(epoch, block, index) for block, index in found]

    def _permute_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in the order of an epoch, and the first sample of each, followed by the number of samples."""
        blocks = np.argsort(
            hash_array(np.arange(len(self.samples_of_block)), hash_ints(self._seed, epoch))
        )  # hashes are distinct
        return blocks, np.concatenate([[0], np.cumsum(self.samples_of_block[blocks])])


def permute_array(indices: np.ndarray, *, size: int, key: int) -> np.ndarray:
    """Vectorized `permute`."""
    half = _half(size)
    mask, result = np.uint64((1 << half) - 1), indices.astype(np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        here = result[walking]
        left, right = here >> np.uint64(half), here & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix_on(hash_ints(key, i), right) & mask)
        result[walking] = here = (left << np.uint64(half)) | right
        walking = walking[here >= size]
    return result.astype(np.int64)


def _mix_on(state: int, values: np.ndarray) -> np.ndarray:
    """Vectorized last step of `hash_ints`: continues from `state` with each value."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64((state + 0x9E3779B97F4A7C15) & _MASK64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def hash_array(values: np.ndarray, key: int) -> np.ndarray:
    """A 64-bit hash of each value under a key (the finalizer of SplitMix64)."""
    with np.errstate(over="ignore"):
        state = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(key)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
