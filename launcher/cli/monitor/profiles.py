"""The command `xlpretrain profile`: the shares of a profiled step, and a plot of them. Torch-free."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from rich.table import Table

from launcher.cli.monitor import find_runs
from launcher.units import format_bytes
from xlpretrain.errors import LaunchError
from xlpretrain.extras import require
from xlpretrain.profiling.shares import GROUPS, StepShares, step_shares
from xlpretrain.profiling.trace import read_trace
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.metrics_file import read_metrics
from xlpretrain.tracking.printing import AnswerConsole

_MOST_RANKS = 4
_NUM_OPERATIONS = 8


def show(path: Path, *, step: int | None, rank: int | None, plot: Path | None) -> None:
    """Print the shares of a run's profiled steps, by default of the last profile and all of its ranks.

    step: a step in the profile. Raises `XLPretrainError`, also if there is no such profile.
    """
    if plot is not None:
        require("matplotlib", "profile --plot")
    run = find_runs.require(path)
    first, ranks = _choose(run, step, rank)
    traces = {each: run.profile_files(first, each)[0] for each in ranks}
    shares = {each: step_shares(read_trace(trace)) for each, trace in traces.items()}
    console = AnswerConsole(markup=False)
    num_steps = max(found.num_steps for found in shares.values())
    steps = f"step {first}" if num_steps == 1 else f"steps {first} to {first + num_steps - 1}, the mean of a step"
    console.print(f"{run.path}: {steps}")
    console.print(_table(shares))
    console.print()
    slowest = max(shares, key=lambda each: shares[each].step_s)
    console.print(_operations(slowest, shares[slowest]))
    console.print()
    if usual := _usual_s(run, first, first + num_steps - 1):
        console.print(f"Steps that were not profiled took {usual:.4g} s: recording takes time, most of it on the host.")
    for trace in traces.values():
        console.print(f"trace: {trace} ({format_bytes(trace.stat().st_size)})")
    console.print("Open it in https://ui.perfetto.dev (nothing is uploaded) or in Chrome at chrome://tracing")
    for each in ranks:
        if (memory := run.profile_files(first, each)[1]).exists():
            console.print(f"memory: {memory}; drop it on https://pytorch.org/memory_viz (nothing is uploaded)")
    if plot is not None:
        from xlpretrain.tracking.plots import plot_shares  # numpy takes a moment

        plot_shares(
            {f"rank {each}": found.seconds for each, found in shares.items()}, plot, title=f"{path.name}, {steps}"
        )
        console.print(f"plot: {plot}")


def _choose(run: RunDir, step: int | None, rank: int | None) -> tuple[int, list[int]]:
    """The first step of the profile to show, and its ranks."""
    profiled = run.profiled()
    name = shlex.quote(str(run.path))
    if not profiled:
        raise LaunchError(
            f"{run.path}: no profile; make one of some steps yet to come, such as"
            f" `xlpretrain resume {name} profile.first_step=100` (more of it: docs/running.md)"
        )
    first = max(profiled)
    if step is not None:
        first = max((each for each in profiled if each <= step), default=0)
        if not first:
            raise LaunchError(f"{run.path}: no profile of step {step}; there are some from step {_list(profiled)} on")
    ranks = profiled[first]
    if rank is not None and rank not in ranks:
        raise LaunchError(
            f"{run.path}: rank {rank} has no profile from step {first} on; there is one of rank {_list(ranks)}"
        )
    return first, ranks if rank is None else [rank]


def _table(shares: Mapping[int, StepShares]) -> Table:
    """Seconds and shares by group: of each rank, or of many ranks the mean, the least and the most."""
    columns = {f"rank {rank}": found.seconds for rank, found in shares.items()}
    if len(shares) > _MOST_RANKS:
        of = {group: [found.seconds[group] for found in shares.values()] for group in GROUPS}
        columns = {
            f"mean of {len(shares)} ranks": {group: statistics.fmean(values) for group, values in of.items()},
            "least": {group: min(values) for group, values in of.items()},
            "most": {group: max(values) for group, values in of.items()},
        }
    table = Table("part of a step", box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right")
    if len(columns) == 1:
        table.add_column("")
    totals = [max(sum(seconds.values()), 1e-12) for seconds in columns.values()]
    for group, meaning in GROUPS.items():
        cells = [
            f"{1000 * seconds[group]:,.1f} ms {seconds[group] / total:6.1%}"
            for seconds, total in zip(columns.values(), totals, strict=True)
        ]
        table.add_row(group, *cells, *([meaning] if len(columns) == 1 else []))
    if len(shares) <= _MOST_RANKS:
        table.add_row("whole step", *(f"{1000 * total:,.1f} ms {1:6.1%}" for total in totals), style="bold")
    return table


def _operations(rank: int, shares: StepShares) -> Table:
    kind = "kernel" if shares.on_gpu else "operation"
    table = Table(f"longest {kind}s of rank {rank}", "in a step", "", box=None, header_style="bold", pad_edge=False)
    table.columns[0].overflow = "ellipsis"
    table.columns[0].no_wrap = True
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, seconds in islice(shares.operations.items(), _NUM_OPERATIONS):
        table.add_row(name, f"{1000 * seconds:,.1f} ms", f"{seconds / max(shares.step_s, 1e-12):.1%}")
    return table


def _usual_s(run: RunDir, first: int, last: int) -> float | None:
    """Median seconds per step of the logged steps that no profile was part of."""
    every = [row for row in read_metrics(run.metrics) if isinstance(row.get("time/step_s"), float)]
    before = [row["time/step_s"] for row in every if row["step"] < first]
    after = [row["time/step_s"] for row in every if row["step"] > last][1:]
    return statistics.median(before[1:] + after) if len(before[1:] + after) else None


def _list(numbers: object) -> str:
    return ", ".join(map(str, numbers))  # type: ignore[call-overload]
