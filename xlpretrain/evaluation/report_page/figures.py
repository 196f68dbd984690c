"""The figures of a run that tables show: scalar summaries of its metrics. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlpretrain.evaluation.report_page.run_data import RunData
from xlpretrain.tracking.console import format_duration

_TAIL = 0.02
_QUIET_S = 300.0


@dataclass(frozen=True)
class Figures:
    """Summary of a run. NaN: unknown.

    train_loss: mean over the last 2 % of the logged steps. best_loss: the lowest held-out loss, after best_step.
    tokens_per_second: median over the logged steps. share: of the time spent in steps.
    """

    state: str
    step: int
    max_steps: int
    tokens: float
    train_loss: float
    best_loss: float
    best_step: int
    tokens_per_second: float
    share: float
    restarts: int
    running_s: float


@dataclass(frozen=True)
class Evaluation:
    """Held-out metrics after a step, by name without `valid/`."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class CorpusFigures:
    """A corpus of a run: its share of the samples, passes over it, and its training loss at the end (NaN: unknown)."""

    name: str
    place: str
    share: float
    epochs: float
    train_loss: float


def figures_of(run: RunData) -> Figures:
    """Summarize a run."""
    status, used = run.status, run.goodput()
    valid = run.column("valid/loss")
    best = int(np.nanargmin(valid)) if np.isfinite(valid).any() else None
    speed = run.column("time/tokens_per_second")
    max_steps = status.max_steps if status else run.config.get("max_steps")
    logged = int(run.steps[-1]) if len(run.steps) else 0
    return Figures(
        state=describe_state(run),
        step=max(status.step, logged) if status else logged,
        max_steps=max_steps if isinstance(max_steps, int) else 0,
        tokens=_last(run.column("tokens")),
        train_loss=mean_at_end(run.column("train/loss")),
        best_loss=float("nan") if best is None else float(valid[best]),
        best_step=0 if best is None else int(run.steps[best]),
        tokens_per_second=float(np.nanmedian(speed)) if np.isfinite(speed).any() else float("nan"),
        share=used.step_s / used.total_s if used.total_s else float("nan"),
        restarts=int(used.restarts),
        running_s=used.total_s,
    )


def describe_state(run: RunData) -> str:
    """The state in `status.json`, with the reason of a stop and the age of an old heartbeat."""
    status = run.status
    if status is None:
        return "not started" if not len(run.steps) else "unknown"
    if status.state == "running":
        silent_s = time.time() - status.updated_at
        return f"running, silent for {format_duration(silent_s)}" if silent_s > _QUIET_S else "running"
    return status.state if status.reason in ("", status.state) else f"{status.state} ({status.reason})"


def evaluations_of(run: RunData) -> list[tuple[str, Evaluation]]:
    """The last evaluation, and the one with the lowest loss if that is another."""
    loss = run.column("valid/loss")
    rows = np.flatnonzero(np.isfinite(loss))
    if not len(rows):
        return []
    last, best = int(rows[-1]), int(np.nanargmin(loss))
    found = [("last", last)] if last == best else [("last", last), ("lowest loss", best)]
    return [(what, Evaluation(int(run.steps[row]), _held_out_metrics(run, row))) for what, row in found]


def corpora_of(run: RunData) -> list[CorpusFigures]:
    """The training corpora of a run, with the names that its metrics use."""
    data = run.config.get("data")
    train = data.get("train") if isinstance(data, dict) else None
    corpora: list[dict[str, Any]] = [
        item if isinstance(item, dict) else {"path": item} for item in (train if isinstance(train, list) else [train])
    ]
    names = _names(run, len(corpora))
    weights = [_positive(corpus.get("weight", 1.0)) for corpus in corpora]
    is_mixture = len(corpora) > 1
    return [
        CorpusFigures(
            name=name,
            place=str(corpus.get("path")),
            share=weight / sum(weights),
            epochs=_last(run.column(f"data/epoch/{name}" if is_mixture else "data/epoch")),
            train_loss=mean_at_end(run.column(f"train/corpus_loss/{name}" if is_mixture else "train/loss")),
        )
        for name, corpus, weight in zip(names, corpora, weights, strict=True)
        if corpus.get("path")
    ]


def num_nonfinite(run: RunData) -> int:
    """Number of logged steps whose training loss was infinite or NaN."""
    return int((np.isfinite(run.column("train/lr")) & ~np.isfinite(run.column("train/loss"))).sum())


def mean_at_end(values: np.ndarray) -> float:
    """Mean of the last 2 % of the known values, at least one; NaN if none is known."""
    known = values[np.isfinite(values)]
    return float(known[-max(1, int(len(known) * _TAIL)) :].mean()) if len(known) else float("nan")


def show(value: float, digits: int = 4) -> str:
    """Format a number with significant digits and thousands separators; a dash if it is unknown."""
    if not np.isfinite(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e15):
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def show_count(value: float) -> str:
    """Format a large number in short, such as "12,345", "1.64 M" and "2.10 B"."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return show(value)


def _held_out_metrics(run: RunData, row: int) -> dict[str, float]:
    names = [name for name in run.table if name.startswith("valid/")]
    found = {name.removeprefix("valid/"): float(run.table[name][row]) for name in names}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _names(run: RunData, count: int) -> Sequence[str]:
    known = run.provenance.get("corpora")
    if isinstance(known, list) and len(known) == count:
        return [str(name) for name in known]
    return ["training data"] if count == 1 else [f"corpus {index}" for index in range(count)]


def _positive(weight: object) -> float:
    return float(weight) if isinstance(weight, int | float) and weight > 0 else 1.0


def _last(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")
