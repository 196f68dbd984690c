"""A table of the ids of words that were met. It forgets, and finds thousands of words at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

from data_pipelines.ragged import Ids, begins, ranges

MARGIN = 16
"""So many bytes must follow the last word."""

_LONGEST, _MOST_IDS, _TABLE_BITS, _BUCKET_BITS = 15, 4, 20, 16
_LOW, _HIGH = (np.array([(1 << 8 * min(max(n - first, 0), 8)) - 1 for n in range(17)], np.uint64) for first in (0, 8))
_GOES_ON = np.uint64(1 << 63)
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93], np.uint64)


class Words(NamedTuple):
    """Words in a text, or parts of words. starts, lengths: in bytes. goes_on: whether it is a part that begins none."""

    starts: np.ndarray
    lengths: np.ndarray
    goes_on: np.ndarray

    def take(self, which: np.ndarray) -> Self:
        """Some of them, by number."""
        return type(self)(*(column.take(which) for column in self))


class WordTable:
    """The ids of words of up to 15 bytes and four ids; each slot has the one that came last.

    low, high: the first eight bytes of the word in a slot, and the next seven with a bit that tells whether it goes on,
    by which it is known; zero: none yet.
    """

    def __init__(self, dtype: np.dtype):
        """dtype: of the ids."""
        columns = [("low", "<u8"), ("high", "<u8"), ("ids", dtype, _MOST_IDS), ("count", "u1")]
        self._slots = np.zeros(1 << _TABLE_BITS, np.dtype(columns, align=True))
        self._latest = np.zeros(1 << _BUCKET_BITS, np.int64)

    def look_up(self, data: np.ndarray, words: Words, encode: Callable[[np.ndarray, Words], Ids]) -> Ids:
        """The ids of words in `data` (bytes), which `encode` gives for those that are not here."""
        is_short = words.lengths <= _LONGEST
        low, high = _keys(data, words)
        slots = (((low * _MIX[0]) ^ (high * _MIX[1])) * _MIX[2] >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
        found = self._slots.take(slots)
        new = np.flatnonzero((found["low"] != low) | (found["high"] != high) | ~is_short)
        # A word that is there twice is encoded once, unless another one came between in its bucket.
        buckets = slots[new] >> (_TABLE_BITS - _BUCKET_BITS)
        self._latest[buckets] = new
        same = self._latest[buckets]
        is_same = (low[new] == low[same]) & (high[new] == high[same]) & is_short[new] & is_short[same]
        same = np.where(is_same, same, new)
        chosen = new[same == new]
        ids, counts = encode(data, words.take(chosen))
        first = begins(counts)
        learned = np.zeros(len(chosen), found.dtype)
        learned["low"], learned["high"], learned["count"] = low[chosen], high[chosen], np.minimum(counts, 255)
        learned["ids"] = np.append(ids, np.zeros(_MOST_IDS, ids.dtype))[first[:, None] + np.arange(_MOST_IDS)]
        small = np.flatnonzero(is_short[chosen] & (counts <= _MOST_IDS))
        self._slots.put(slots[chosen[small]], learned[small])
        # The ids of a word are in what was found for it, or behind all that.
        source = np.concatenate([found.view(ids.dtype), ids])
        row, at = (offset // ids.itemsize for offset in (found.itemsize, found.dtype.fields["ids"][1]))
        where, sizes = np.arange(len(found)) * row + at, found["count"].astype(np.int64)
        number = np.empty(len(found), np.int64)
        number[chosen] = np.arange(len(chosen))
        where[new], sizes[new] = first[number[same]] + len(found) * row, counts[number[same]]
        return source.take(ranges(where, sizes)), sizes


def _keys(data: np.ndarray, words: Words) -> tuple[np.ndarray, np.ndarray]:
    eight = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the eight bytes from each on
    lengths = np.minimum(words.lengths, MARGIN)
    low = eight[words.starts] & _LOW.take(lengths)
    return low, eight[words.starts + 8] & _HIGH.take(lengths) | _GOES_ON * words.goes_on
