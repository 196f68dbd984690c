"""A bounded cache of the token ids of words, with vectorized lookups.

The ids of many words are a ragged array: the concatenated values, and the length of each word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

Ids = tuple[np.ndarray, np.ndarray]
"""Concatenated ids of several texts, and the number of ids of each (int64)."""


def offsets(sizes: np.ndarray) -> np.ndarray:
    """The start of each segment."""
    return np.asarray(np.cumsum(sizes) - sizes)


def ranges(first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Concatenated ranges of `sizes` consecutive indices, starting at each of `first`."""
    ends = np.cumsum(sizes)
    return np.asarray(np.arange(ends[-1] if len(ends) else 0) + (first - ends + sizes).repeat(sizes))


def segment_sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The sum of each segment."""
    return np.diff(np.append(0, np.cumsum(values))[np.append(0, np.cumsum(sizes))])


def interleave(which: np.ndarray, yes: Ids, no: Ids) -> Ids:
    """Take elements of `yes` where `which` is true and of `no` where it is false, in order."""
    if which.all():
        return yes
    first, sizes = np.empty((2, len(which)), np.int64)
    sizes[which], sizes[~which] = yes[1], no[1]
    first[which], first[~which] = offsets(yes[1]), offsets(no[1]) + len(yes[0])
    return np.concatenate([yes[0], no[0]]).take(ranges(first, sizes)), sizes


MARGIN = 16
"""Bytes of padding required after the last word."""

_LONGEST, _MOST_IDS, _TABLE_BITS, _BUCKET_BITS = 15, 4, 20, 16
_LOW, _HIGH = (np.array([(1 << 8 * min(max(n - first, 0), 8)) - 1 for n in range(17)], np.uint64) for first in (0, 8))
_CONTINUES = np.uint64(1 << 63)
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93], np.uint64)


class Words(NamedTuple):
    """Words or parts of words in a text. starts, lengths: in bytes. continues: True for a part that begins no word."""

    starts: np.ndarray
    lengths: np.ndarray
    continues: np.ndarray


class WordTable:
    """A hash table with the ids of words of up to 15 bytes and four ids. Each slot keeps the latest word."""

    def __init__(self, dtype: np.dtype):
        """dtype: type of the ids."""
        columns = [("low", "<u8"), ("high", "<u8"), ("ids", dtype, _MOST_IDS), ("count", "u1")]
        self._slots = np.zeros(1 << _TABLE_BITS, np.dtype(columns, align=True))
        self._latest = np.zeros(1 << _BUCKET_BITS, np.int64)

    def look_up(self, data: np.ndarray, words: Words, encode: Callable[[np.ndarray, Words], Ids]) -> Ids:
        """The ids of words in `data` (bytes). `encode` is called for the words that are not cached."""
        keys = _keys_of(data, words)
        found = self._slots.take(keys.slot)
        new = np.flatnonzero((found["low"] != keys.low) | (found["high"] != keys.high) | ~keys.is_short)
        same = self._find_same(_take(keys, new))
        is_first = same == np.arange(len(new))
        chosen, which = new[is_first], (np.cumsum(is_first) - 1)[same]
        ids, counts = encode(data, _take(words, chosen))
        self._learn(_take(keys, chosen), ids, counts)
        # The ids of a word are in its slot, or after all slots.
        source = np.concatenate([found.view(ids.dtype), ids])
        row, at = found.itemsize // ids.itemsize, 16 // ids.itemsize  # ids follow `low` and `high`
        where, sizes = np.arange(len(found)) * row + at, found["count"].astype(np.int64)
        where[new], sizes[new] = (len(found) * row + offsets(counts))[which], counts[which]
        return source.take(ranges(where, sizes)), sizes

    def _find_same(self, keys: _Keys) -> np.ndarray:
        """For each word, the index of one equal word; the same index for all equal words, barring bucket collisions."""
        buckets, own = keys.slot >> (_TABLE_BITS - _BUCKET_BITS), np.arange(len(keys.slot))
        self._latest[buckets] = own
        other = self._latest[buckets]
        is_same = (keys.low == keys.low[other]) & (keys.high == keys.high[other]) & keys.is_short & keys.is_short[other]
        return np.where(is_same, other, own)

    def _learn(self, keys: _Keys, ids: np.ndarray, counts: np.ndarray) -> None:
        own = np.flatnonzero(keys.is_short & (counts <= _MOST_IDS))
        learned = np.zeros(len(own), self._slots.dtype)
        learned["low"], learned["high"], learned["count"] = keys.low[own], keys.high[own], counts[own]
        places = offsets(counts)[own, None] + np.arange(_MOST_IDS)  # ids of the next word are never read
        learned["ids"] = np.append(ids, np.zeros(_MOST_IDS, ids.dtype))[places]
        self._slots.put(keys.slot[own], learned)


class _Keys(NamedTuple):
    """Keys of words. low: the first eight bytes; high: the next seven, with a bit for `continues`; slot: index in the
    table; is_short: True if these bytes are the whole word."""

    low: np.ndarray
    high: np.ndarray
    slot: np.ndarray
    is_short: np.ndarray


C = TypeVar("C", Words, _Keys)


def _take(columns: C, which: np.ndarray) -> C:
    """Select rows."""
    return type(columns)(*(column.take(which) for column in columns))


def _keys_of(data: np.ndarray, words: Words) -> _Keys:
    eight = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the eight bytes from each position
    lengths = np.minimum(words.lengths, MARGIN)
    low = eight[words.starts] & _LOW.take(lengths)
    high = eight[words.starts + 8] & _HIGH.take(lengths) | _CONTINUES * words.continues
    slot = ((low * _MIX[0]) ^ (high * _MIX[1])) * _MIX[2] >> np.uint64(64 - _TABLE_BITS)
    return _Keys(low, high, slot.astype(np.int64), words.lengths <= _LONGEST)
