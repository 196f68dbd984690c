"""Selection of the points of a curve: few enough to draw, with all its extremes. Torch-free."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAX_POINTS = 4000
"""Maximum number of points of a curve."""


class Curve(NamedTuple):
    """Points of a curve (steps ascend), and its means over the same buckets, if it was thinned (else empty)."""

    steps: np.ndarray
    values: np.ndarray
    mean_steps: np.ndarray
    means: np.ndarray


def thin(steps: np.ndarray, values: np.ndarray, max_points: int = MAX_POINTS) -> Curve:
    """Select at most `max_points` (at least 4) of a curve's points.

    The curve is cut into buckets of equally many points, and the lowest and the highest of each are kept; the first
    and last points are kept as well. Points within a constant stretch are dropped first. Points that are NaN are
    dropped.
    """
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    none = np.empty(0)
    if len(values) <= max_points:
        return Curve(steps, values, none, none)
    turns = _without_constant_stretches(values)
    if len(turns) <= max_points:
        return Curve(steps[turns], values[turns], none, none)
    edges = np.linspace(0, len(values), (max_points - 2) // 2 + 1).astype(int)
    starts, sizes = edges[:-1], np.diff(edges)
    picked = {0, len(values) - 1}
    for start, stop in zip(starts, edges[1:], strict=True):
        bucket = values[start:stop]
        picked |= {start + int(bucket.argmin()), start + int(bucket.argmax())}
    indices = np.array(sorted(picked))
    means = np.add.reduceat(values, starts) / sizes
    mean_steps = np.add.reduceat(steps, starts) / sizes
    return Curve(steps[indices], values[indices], mean_steps, means)


def _without_constant_stretches(values: np.ndarray) -> np.ndarray:
    """Indices of the points that differ from a neighbor, and of both ends."""
    changes = values[1:] != values[:-1]
    return np.flatnonzero(np.append(True, changes) | np.append(changes, True))
