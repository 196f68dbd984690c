"""Goodput: accounting of a run's wall time over all its attempts. Torch-free."""

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
    """Seconds since the run started, on rank 0's clock; every second is in exactly one of these.

    step_s, data_wait_s, save_s, eval_s: in steps, waiting for data, blocked by saves, in evaluations.
    lost_s: time of steps undone by a crash, and of interrupted evaluations; steps_redone counts those steps, as far as
        they were logged.
    restart_s: from the last heartbeat of an attempt to the first step of the next; restarts counts them.
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
        """Accounting of an attempt that takes its first step now.

        last: final metrics of the previous attempt; kept: its metrics at the step that this one resumes from; both as
        returned by `metrics`. steps_lost: steps between the two. away_s: seconds since its last heartbeat.
        """
        new = cls()
        for name in _WORK:
            setattr(new, name, kept.get(_PREFIX + name) or 0.0)
        before = cls.from_metrics(last)
        new.lost_s = before.lost_s + max(before.productive_s - new.productive_s, 0.0)
        new.restart_s = before.restart_s + max(away_s, 0.0)
        new.steps_redone = before.steps_redone + max(steps_lost, 0)
        new.restarts = before.restarts + 1
        return new

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Goodput:
        """Restore from `metrics`; missing entries are 0."""
        return cls(**{f.name: metrics.get(_PREFIX + f.name) or 0 for f in fields(cls) if not f.name.startswith("_")})

    @property
    def productive_s(self) -> float:
        """Seconds of work that no crash undid."""
        return self.step_s + self.data_wait_s + self.save_s + self.eval_s

    @property
    def total_s(self) -> float:
        """Total seconds."""
        return self.productive_s + self.lost_s + self.restart_s

    def metrics(self) -> dict[str, float | int]:
        """Metrics by their names in `metrics.jsonl`; `goodput/share` is the fraction of `step_s`."""
        named = {_PREFIX + f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        return {_PREFIX + "share": self.step_s / max(self.total_s, 1e-9), **named}


def describe(metrics: Mapping[str, Any]) -> str:
    """Format the result of `Goodput.metrics` in one line."""
    known = Goodput.from_metrics(metrics)
    total = max(known.total_s, 1e-9)

    def share(seconds: float) -> str:
        return f"{100 * seconds / total:.1f}%"

    return (
        f"goodput {share(known.step_s)} of {total:,.0f} s in steps; {share(known.data_wait_s)} waiting for data,"
        f" {share(known.save_s)} blocked by saves, {share(known.eval_s)} in evaluations, {share(known.restart_s)}"
        f" starting ({_count(known.restarts, 'restart')}), {share(known.lost_s)} lost"
        f" ({_count(known.steps_redone, 'step')} redone)"
    )


def _count(number: float, what: str) -> str:
    return f"{number:.0f} {what}{'' if number == 1 else 's'}"
