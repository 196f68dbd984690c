"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from xlpretrain.schema import Problem, Registry, Section, TaggedUnion


class Schedule(Section, ABC):
    """A linear warm-up, then a decay to `min_lr_ratio`."""

    type: str
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises linearly: update k has k / warmup_steps of the peak rate. In the TensorFlow code
    of BERT, ALBERT and XLNet it has (k - 1) / warmup_steps, so the first update changes nothing; after the warm-up the
    rates are the same."""
    total_steps: int | None = Field(None, gt=0)
    """The step at which the decay ends (default: the run's first max_steps)."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """The final rate, as a fraction of the peak rate."""

    def problems(self) -> Iterator[Problem]:
        """Yield a problem if the warm-up does not end before the schedule."""
        if self.total_steps is not None and self.warmup_steps >= self.total_steps:
            yield "warmup_steps", f"must be below total_steps ({self.total_steps}), got {self.warmup_steps}"

    def factor(self, step: int) -> float:
        """The rate of the next update after `step` completed ones, as a fraction of the peak rate."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.total_steps is None:
            raise ValueError("the schedule has no total_steps yet; resolve the config first")
        decay_steps = max(1, self.total_steps - self.warmup_steps)
        return self.decay(min(1.0, (step - self.warmup_steps) / decay_steps), step)

    @abstractmethod
    def decay(self, progress: float, step: int) -> float:
        """The factor after the warm-up; `progress` rises from 0 to 1, reached at total_steps."""


class Linear(Schedule):
    """Linear decay. With `decay_from: start`, the polynomial decay of power 1 of BERT and ALBERT."""

    type: Literal["linear"] = "linear"
    """Kind of schedule."""
    decay_from: Literal["warmup", "start"] = "warmup"
    """Start of the decay line: the end of the warm-up, or step 0. With `start`, the rate drops at the end of the
    warm-up (to 1 - warmup_steps / total_steps of the peak, if min_lr_ratio is 0)."""

    def decay(self, progress: float, step: int) -> float:
        """Linear from 1 to `min_lr_ratio`."""
        if self.decay_from == "start" and self.total_steps is not None:
            progress = min(1.0, step / self.total_steps)
        return 1 - progress * (1 - self.min_lr_ratio)


class Cosine(Schedule):
    """Half a cosine period (Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts)."""

    type: Literal["cosine"] = "cosine"
    """Kind of schedule."""

    def decay(self, progress: float, step: int) -> float:
        """Cosine from 1 to `min_lr_ratio`."""
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2


class InverseSqrt(Schedule):
    """sqrt(warmup_steps / step), without end (Vaswani et al., "Attention is all you need", 2017, equation 3)."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"
    """Kind of schedule."""

    def decay(self, progress: float, step: int) -> float:
        """Inverse square root of the step, never below `min_lr_ratio`."""
        return max(self.min_lr_ratio, math.sqrt(max(1, self.warmup_steps) / (step + 1)))


class WSD(Schedule):
    """Warm-up, stable, decay: constant, then down to `min_lr_ratio` over the last steps (Hu et al., "MiniCPM", 2024).

    One run in its stable phase can be the trunk of many short decays (docs/branches.md).
    """

    type: Literal["wsd"] = "wsd"
    """Kind of schedule."""
    decay_ratio: float = Field(0.1, gt=0, le=1)
    """The fraction of the steps after the warm-up over which the rate decays, unless decay_steps is set."""
    decay_steps: int | None = Field(None, gt=0)
    """Number of steps over which the rate decays, before total_steps (default: decay_ratio of them)."""
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """Shape of the decay. 1-sqrt is 1 minus the square root of the share of its steps (Hägele et al., "Scaling laws and
    compute-optimal training beyond fixed training durations", 2024, section 3)."""

    def problems(self) -> Iterator[Problem]:
        """Yield a problem if the warm-up or the decay does not fit into the schedule."""
        yield from super().problems()
        if self.total_steps is not None and self.decay_steps is not None:
            left = self.total_steps - self.warmup_steps
            if self.decay_steps > left > 0:
                yield "decay_steps", f"must be at most total_steps - warmup_steps ({left}), got {self.decay_steps}"

    def decay(self, progress: float, step: int) -> float:
        """1, then down to `min_lr_ratio` in the chosen shape."""
        if self.decay_steps is None or self.total_steps is None:
            fallen = max(0.0, (progress - (1 - self.decay_ratio)) / self.decay_ratio)
        else:
            fallen = min(1.0, max(0.0, (step - (self.total_steps - self.decay_steps)) / self.decay_steps))
        if self.decay_shape == "cosine":
            fallen = (1 - math.cos(math.pi * fallen)) / 2
        elif self.decay_shape == "1-sqrt":
            fallen = math.sqrt(fallen)
        return 1 - fallen * (1 - self.min_lr_ratio)


Point = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


class Points(Schedule):
    """Piecewise linear between given points; constant before the first and after the last."""

    type: Literal["points"] = "points"
    """Kind of schedule."""
    points: tuple[Point, ...] = Field(min_length=1)
    """Pairs [position, rate], in the order of their positions: [[0, 0.01], [0.1, 1], [1, 0]]. The rate is a fraction of
    the peak rate, and that of the next update; at a position that is given twice it jumps to the second value."""
    position: Literal["fraction", "step"] = "fraction"
    """Unit of the positions: fraction (of total_steps), or step (the number of completed updates)."""

    def problems(self) -> Iterator[Problem]:
        """Yield unordered points, fractions above 1, and keys that the points replace."""
        for number, ((before, _), (after, _)) in enumerate(pairwise(self.points), 1):
            if after < before:
                yield f"points.{number}", f"must not lie before the point at {before:g}, got {after:g}"
        if self.position == "fraction" and self.points[-1][0] > 1:
            last = self.points[-1][0]
            yield "points", f"must lie within 0 and 1, got {last:g}; for steps, set schedule.position=step"
        for key in ("warmup_steps", "min_lr_ratio"):
            if value := getattr(self, key):
                yield key, f"must be 0 with type points, whose points give all rates, got {value:g}"

    def decay(self, progress: float, step: int) -> float:
        """Linear between the two points around `progress`, or around `step`."""
        position = progress if self.position == "fraction" else step
        after = bisect_right(self.points, position, key=lambda point: point[0])
        if after in (0, len(self.points)):
            return self.points[max(0, after - 1)][1]
        (left, low), (right, high) = self.points[after - 1 : after + 1]
        return low + (high - low) * (position - left) / (right - left)


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    Schedule,
    {"cosine": Cosine, "linear": Linear, "inverse_sqrt": InverseSqrt, "wsd": WSD, "points": Points},
)
AnySchedule = Annotated[Schedule, TaggedUnion(SCHEDULES)]
