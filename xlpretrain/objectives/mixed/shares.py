"""Division of a run's streams among the parts of a mixed objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise


def divide_streams(num_streams: int, shares: Sequence[float]) -> list[range]:
    """Consecutive streams of each part, sized by the method of largest remainders; on a tie the earlier part gets more.

    shares: positive; only their ratios count. A part with a small share may get no stream.
    """
    quotas = [num_streams * share / sum(shares) for share in shares]
    sizes = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda part: sizes[part] - quotas[part])
    for part in by_remainder[: num_streams - sum(sizes)]:
        sizes[part] += 1
    return [range(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]
