"""Slow ranks: the one for which the others wait is named, in the metrics, the status and on the console.

In every step the ranks wait for each other: in the agreement, and where the host does it, in the reduction of the
gradients. Who waits least is late: each rank measures what it works in a step, from its data to its update, without
these waits. A single slow step says nothing, so each keeps the median of its last steps, and how well it is known.
The medians of all ranks are exchanged in the reduction of a logged row.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

from xlpretrain import distributed
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext, CompletedStep

WINDOW, FEWEST = 20, 10
"""Number of steps that a rank is judged by, and the fewest with which it is judged."""
SHARE, ERRORS = 0.1, 3.0
"""A rank is late if it is behind by more than this share of a step, and by as many standard errors. A healthy run of
three ranks on two overloaded cores never exceeded 1.7 errors."""


@dataclass(frozen=True)
class RankTimes:
    """A rank's seconds per step, as medians of its last steps. error_s: standard error of `work_s`."""

    work_s: float
    error_s: float
    wait_s: float

    @classmethod
    def of(cls, steps: Sequence[tuple[float, float]]) -> RankTimes:
        """The medians of the work and the wait of some steps, at least two."""
        work, wait = zip(*steps, strict=True)
        low, _, high = statistics.quantiles(work, n=4)
        # 0.93: for normal times; quartiles, since one slow step must not hide a slow rank.
        return cls(statistics.median(work), 0.93 * (high - low) / math.sqrt(len(work)), statistics.median(wait))


@dataclass(frozen=True)
class Slowest:
    """The rank that works longest. late_s: seconds per step by which it exceeds the median of the others.

    is_late: True if it is behind by more than chance and noise explain.
    """

    rank: int
    late_s: float
    is_late: bool


def slowest(ranks: Sequence[RankTimes], *, named: int | None = None) -> Slowest:
    """Judge two ranks or more. named: the rank that is late so far; it is until it has caught up by half."""
    rank = max(range(len(ranks)), key=lambda each: ranks[each].work_s)
    found, others = ranks[rank], [times for each, times in enumerate(ranks) if each != rank]
    late_s = found.work_s - statistics.median(times.work_s for times in others)
    error_s = math.hypot(found.error_s, statistics.median(times.error_s for times in others))
    limit_s = max(SHARE * (found.work_s + found.wait_s), ERRORS * error_s)
    return Slowest(rank, late_s, late_s > (limit_s / 2 if rank == named else limit_s))


class Stragglers(Callback):
    """Measures this rank, and names the late one at logged steps."""

    def __init__(self, context: CallbackContext, hosts: Sequence[str], *, show: Callable[[str], None]):
        """hosts: of each rank. show: puts a text about the late rank into the status of the run, or an empty one."""
        self.num_row_numbers = 3 * context.world_size
        self._context, self._hosts, self._show = context, hosts, show
        self._steps: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._begun_at = self._waited_s = 0.0
        self._named: int | None = None

    def before_fetch(self, step: int) -> None:
        """Start the clock."""
        self._begun_at, self._waited_s = time.perf_counter(), distributed.waited_s()

    def after_step(self, done: CompletedStep) -> None:
        """Keep what this rank worked, and what it waited. Its row, saves and evaluations are not in it."""
        waited_s = distributed.waited_s() - self._waited_s
        self._steps.append((time.perf_counter() - self._begun_at - waited_s, waited_s))

    def row_numbers(self, step: int) -> Sequence[float]:
        """This rank's times at its place among those of all ranks; zeros until there are enough steps."""
        numbers = [0.0] * self.num_row_numbers
        if len(self._steps) >= FEWEST:
            place = 3 * self._context.rank
            numbers[place : place + 3] = astuple(RankTimes.of(self._steps))
        return numbers

    def metrics(self, step: int, sums: Sequence[float]) -> Metrics:
        """The longest wait of a rank, how late the slowest one is, and its number if it is late, else -1."""
        ranks = [RankTimes(*sums[place : place + 3]) for place in range(0, len(sums), 3)]
        if not all(times.work_s for times in ranks):
            return {}
        found = slowest(ranks, named=self._named)
        self._announce(step, found)
        return {
            "time/wait_max_s": max(times.wait_s for times in ranks),
            "time/late_max_s": found.late_s,
            "time/straggler": found.rank if found.is_late else -1,
        }

    def _announce(self, step: int, found: Slowest) -> None:
        before, self._named = self._named, found.rank if found.is_late else None
        if found.is_late:
            name = f"rank {found.rank} on {self._hosts[found.rank]}"
            self._show(f"{name}: {found.late_s:.3g} s per step later than the others")
            if before != found.rank:
                self._context.print(
                    f"step {step}: {name} is late: the others wait for it, {found.late_s:.3g} s in a step"
                )
        elif before is not None:
            self._show("")
            self._context.print(f"step {step}: rank {before} on {self._hosts[before]} is no longer late")
