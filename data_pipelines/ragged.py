"""Arrays that hold several runs of values, one after the other."""

from __future__ import annotations

import numpy as np

Ids = tuple[np.ndarray, np.ndarray]
"""Those of several texts, one after the other, and how many each has (int64)."""


def begins(sizes: np.ndarray) -> np.ndarray:
    """Where each run begins."""
    return np.asarray(np.cumsum(sizes) - sizes)


def ranges(first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """So many numbers from each of `first` on, as indices of what lies there."""
    ends = np.cumsum(sizes)
    return np.asarray(np.arange(ends[-1] if len(ends) else 0) + (first - ends + sizes).repeat(sizes))


def sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of each run."""
    return np.diff(np.append(0, np.cumsum(values))[np.append(0, np.cumsum(sizes))])


def interleave(which: np.ndarray, yes: Ids, no: Ids) -> Ids:
    """What is in `yes` where `which` is true, what is in `no` where it is false."""
    if which.all():
        return yes
    first, sizes = np.empty((2, len(which)), np.int64)
    sizes[which], sizes[~which] = yes[1], no[1]
    first[which], first[~which] = begins(yes[1]), begins(no[1]) + len(yes[0])
    return np.concatenate([yes[0], no[0]]).take(ranges(first, sizes)), sizes
