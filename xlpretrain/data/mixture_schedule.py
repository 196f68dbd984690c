"""The schedule of a mixture: computes the corpus of any visit directly, with exact shares. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

LONGEST_PERIOD = 100_000
"""The maximum period. Weights that would need a longer one are rounded to multiples of 1 / LONGEST_PERIOD."""


@dataclass(frozen=True)
class SchedulePhase:
    """The visits `first`, first + 1, ..., assigned to corpora periodically.

    assigned: the corpus of each visit of a period. rank: number of earlier visits of the same corpus in the period.
    per_period: visits of each corpus per period. before: visits of each corpus before the phase.
    """

    first: int
    assigned: np.ndarray
    rank: np.ndarray
    per_period: np.ndarray
    before: np.ndarray

    def visit_of(self, corpus: int, corpus_visit: int) -> int:
        """The visit at which a corpus gets its visit number `corpus_visit`, if that is not before this phase."""
        periods, rank = divmod(corpus_visit - int(self.before[corpus]), int(self.per_period[corpus]))
        offset = np.flatnonzero(self.assigned == corpus)[rank]
        return self.first + periods * len(self.assigned) + int(offset)


class MixtureSchedule:
    """Assigns the visits 0, 1, 2, ... to corpora by weight, with constant-time access to any visit.

    Of the first k visits after a corpus was exhausted, a corpus with share w gets more than k * w - 1 and fewer than
    k * w + 1, for every k. A corpus is exhausted when it reaches its limit; the others then divide its share. Weights
    may change at given visits; then k counts from the change.

    Attributes:
        shares: the share of each corpus while none is exhausted.
        exhausted_at: pairs (first visit without it, corpus), in order.
    """

    def __init__(
        self,
        weights: Sequence[float],
        limits: Sequence[int | None],
        changes: Sequence[tuple[int, Sequence[float]]] = (),
    ):
        """limits: maximum number of visits of each corpus, or None. changes: first visits of other weights."""
        coming = [(visit, integer_weights(others)) for visit, others in changes]
        whole = integer_weights(weights)
        self.shares = [weight / sum(whole) for weight in whole]
        self.exhausted_at: list[tuple[int, int]] = []
        self._phases: list[SchedulePhase] = []
        left, first, before = list(range(len(whole))), 0, np.zeros(len(whole), np.int64)
        while left:
            phase = _phase(first, [w if i in left else 0 for i, w in enumerate(whole)], before)
            self._phases.append(phase)
            ends = {i: phase.visit_of(i, limit - 1) + 1 for i in left if (limit := limits[i]) is not None}
            if coming and (not ends or coming[0][0] <= min(ends.values())):
                (first, whole), *coming = coming
                before = self.counts(first)
                continue
            if not ends:
                break
            corpus = min(ends, key=lambda i: ends[i])
            first, before = ends[corpus], self.counts(ends[corpus])
            self.exhausted_at.append((first, corpus))
            left.remove(corpus)

    @property
    def num_visits(self) -> int | None:
        """Number of visits until all corpora are exhausted; None if that never happens."""
        return self.exhausted_at[-1][0] if len(self.exhausted_at) == len(self.shares) else None

    def corpus_at(self, visit: int) -> tuple[int, int]:
        """The corpus of a visit, and the number of that visit within the corpus."""
        phase = self._phase_of(visit)
        periods, offset = divmod(visit - phase.first, len(phase.assigned))
        corpus = int(phase.assigned[offset])
        corpus_visit = int(phase.before[corpus]) + periods * int(phase.per_period[corpus]) + int(phase.rank[offset])
        return corpus, corpus_visit

    def counts(self, visit: int) -> np.ndarray:
        """Number of visits of each corpus before `visit`."""
        phase = self._phase_of(max(visit - 1, 0))
        periods, offset = divmod(visit - phase.first, len(phase.assigned))
        rest = np.bincount(phase.assigned[:offset], minlength=len(self.shares))
        counts: np.ndarray = phase.before + periods * phase.per_period + rest
        return counts

    def _phase_of(self, visit: int) -> SchedulePhase:
        return next(phase for phase in reversed(self._phases) if phase.first <= visit)


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Weights as integers in lowest terms: exact if their sum is at most `LONGEST_PERIOD`, else rounded to that sum,
    with at least 1 each."""
    exact = [Fraction(repr(weight)) for weight in weights]
    total = sum(exact) / LONGEST_PERIOD
    unit = Fraction(1, math.lcm(*(weight.denominator for weight in exact)))
    whole = [int(weight / unit) for weight in exact]
    if sum(whole) // math.gcd(*whole) > LONGEST_PERIOD:
        whole = [max(round(weight / total), 1) for weight in exact]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def _phase(first: int, whole: Sequence[int], before: np.ndarray) -> SchedulePhase:
    divisor = math.gcd(*whole)
    assigned = make_schedule(tuple(weight // divisor for weight in whole))
    rank = np.empty(len(assigned), np.int64)
    for corpus in range(len(whole)):
        visits = np.flatnonzero(assigned == corpus)
        rank[visits] = np.arange(len(visits))
    return SchedulePhase(first, assigned, rank, np.bincount(assigned, minlength=len(whole)), before)


@lru_cache
def make_schedule(weights: tuple[int, ...]) -> np.ndarray:
    """The corpus of each visit of a period of sum(weights) visits. Weights may be 0.

    Among the corpora that would not get too far ahead, a visit goes to the one that would fall too far behind soonest:
    Tijdeman, "The chairman assignment problem" (1980). With n corpora no prefix is off by more than 1 - 1 / (2n - 2).
    Choosing the largest deficit instead can be off by more than one if there are many corpora.
    """
    period, some = sum(weights), [i for i, weight in enumerate(weights) if weight]
    scale = max(2 * len(some) - 2, 1)
    deficits, assigned = [0] * len(weights), np.zeros(period, np.int64)
    for visit in range(period):
        best, soonest = -1, math.inf
        for i in some:
            deficits[i] += weights[i]
            if deficits[i] * scale >= period:
                deadline = (period * (scale - 1) - deficits[i] * scale) / weights[i]
                if deadline < soonest:
                    best, soonest = i, deadline
        assigned[visit] = best
        deficits[best] -= period
    return assigned
