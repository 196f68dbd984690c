"""The accounts of a run's wall time, over all its attempts. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Work = Literal["step_s", "data_wait_s", "save_s", "eval_s"]
_WORK: tuple[Work, ...] = ("step_s", "data_wait_s", "save_s", "eval_s")
_PREFIX = "goodput/"


@dataclass
class Goodput:
    """Seconds since the run began, by rank 0's clock; every second is in one of these.

    step_s, data_wait_s, save_s, eval_s: in steps that count, waiting for data, held up by saves, in evaluations.
    lost_s: all of these for steps that a crash undid, and evaluations that a stop cut; steps_redone counts those steps,
        as far as they were logged.
    restart_s: until the first step of a start, from the last sign of the one before; restarts counts them.
    """

    step_s: float = 0.0
    data_wait_s: float = 0.0
    save_s: float = 0.0
    eval_s: float = 0.0
    lost_s: float = 0.0
    restart_s: float = 0.0
    steps_redone: int = 0
    restarts: int = 0
    _mark: float = field(default_factory=time.monotonic)

    def add_time(self, on: Work) -> None:
        """Charge the time since the last call to `on`."""
        now = time.monotonic()
        setattr(self, on, getattr(self, on) + now - self._mark)
        self._mark = now

    @classmethod
    def resumed(cls, last: Mapping[str, Any], kept: Mapping[str, Any], *, steps_lost: int, away_s: float) -> Goodput:
        """The accounts of a start that makes its first step now.

        last: what the start before knew at the end; kept: what it knew at the step that this one goes on from; both as
        `metrics` gives them. steps_lost: from the one to the other. away_s: since its last sign.
        """
        new = cls()
        for name in _WORK:
            setattr(new, name, kept.get(_PREFIX + name) or 0.0)
        new.lost_s = (last.get(_PREFIX + "lost_s") or 0.0) + max(work_s(last) - new.productive_s, 0.0)
        new.restart_s = (last.get(_PREFIX + "restart_s") or 0.0) + max(away_s, 0.0)
        new.steps_redone = (last.get(_PREFIX + "steps_redone") or 0) + max(steps_lost, 0)
        new.restarts = (last.get(_PREFIX + "restarts") or 0) + 1
        return new

    @property
    def productive_s(self) -> float:
        """Seconds of work that no crash undid."""
        return self.step_s + self.data_wait_s + self.save_s + self.eval_s

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.productive_s + self.lost_s + self.restart_s

    def metrics(self) -> dict[str, float | int]:
        """The figures under their names in `metrics.jsonl`; `goodput/share` is that of `step_s`."""
        named = {_PREFIX + f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        return {_PREFIX + "share": self.step_s / max(self.total_s, 1e-9), **named}


def work_s(metrics: Mapping[str, Any]) -> float:
    """`Goodput.productive_s` by what `Goodput.metrics` gave; 0 where that is missing."""
    return float(sum(metrics.get(_PREFIX + name) or 0.0 for name in _WORK))


def describe(metrics: Mapping[str, Any]) -> str:
    """One line on what `Goodput.metrics` gave."""
    known = Goodput(**{f.name: metrics.get(_PREFIX + f.name) or 0 for f in fields(Goodput) if f.name[0] != "_"})
    total = max(known.total_s, 1e-9)

    def share(seconds: float) -> str:
        return f"{100 * seconds / total:.1f}%"

    return (
        f"goodput {share(known.step_s)} of {total:,.0f} s in steps; {share(known.data_wait_s)} waiting for data,"
        f" {share(known.save_s)} held by saves, {share(known.eval_s)} in evaluations, {share(known.restart_s)} starting"
        f" ({known.restarts} restarts), {share(known.lost_s)} lost ({known.steps_redone} steps done again)"
    )
