"""`xlpretrain report` of several runs: a table in the terminal, a plot or a page in a file, a page that is served.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from launcher.cli.monitor.find_runs import require
from launcher.units import format_bytes
from xlpretrain.errors import LaunchError
from xlpretrain.evaluation.report_page import page as report_page
from xlpretrain.evaluation.report_page.comparison import ConfigRow, compare, flatten
from xlpretrain.evaluation.report_page.figures import Figures, figures_of, show, show_count
from xlpretrain.evaluation.report_page.page import PageOptions, TextSample
from xlpretrain.evaluation.report_page.run_data import RunData, RunReader, open_runs
from xlpretrain.evaluation.report_page.server import serve
from xlpretrain.tracking.console import format_duration
from xlpretrain.tracking.plots import RunCurves, plot_runs
from xlpretrain.tracking.printing import AnswerConsole

_REFRESH_S = 5.0


def print_comparison(paths: Sequence[Path]) -> None:
    """Print a table of runs, and one of the config keys in which they differ. Raises `LaunchError`."""
    runs = [_read(reader) for reader in _open(paths)]
    console = AnswerConsole(markup=False)
    console.print(_figures_table(runs))
    differing = compare([run.config for run in runs]).differing
    console.print()
    if differing:
        console.print(_config_table([run.label for run in runs], differing))
    else:
        console.print("The configs have no differing keys.")
    for run in runs:
        for problem in run.problems:
            console.print(f"{run.label}: {problem}")


def write_plot(paths: Sequence[Path], file: Path) -> None:
    """Plot the losses and rates of some runs over each other; forks begin where they branch off.

    Runs that differ only in their seed have one color. Raises `LaunchError`, and `MissingPackageError` without
    matplotlib.
    """
    runs = [_read(reader) for reader in _open(paths)]
    try:
        plot_runs(_all_curves(runs), file)
    except OSError as error:
        raise LaunchError(f"{file}: cannot be written: {error.strerror}") from None
    print(f"wrote {file}: {len(paths)} run{'' if len(paths) == 1 else 's'}")


def write_page(
    paths: Sequence[Path], file: Path, *, force: bool, make_samples: Callable[[], Sequence[TextSample]]
) -> None:
    """Write the page of some runs to a file. Raises `LaunchError`.

    make_samples: called once the runs and the file are known to be usable.
    """
    report_page.refuse_to_overwrite(file, force=force)
    readers = _open(paths)
    options = PageOptions(samples=make_samples())
    content = report_page.render([_read(reader) for reader in readers], options)
    report_page.write(file, content)
    size = format_bytes(len(content.encode()))
    print(f"wrote {file}: {len(paths)} run{'' if len(paths) == 1 else 's'}, {size}; open it in a browser")


def watch(paths: Sequence[Path], *, port: int) -> None:
    """Serve the page of some runs until Ctrl-C. Raises `LaunchError`."""

    def announce(url: str) -> None:
        print(f"serving {url} to this machine only; Ctrl-C ends it", flush=True)

    serve(_open(paths), port=port, refresh_s=_REFRESH_S, announce=announce)


def _open(paths: Sequence[Path]) -> list[RunReader]:
    for path in paths:
        require(path)
    return open_runs(paths)


def _read(reader: RunReader) -> RunData:
    reader.refresh()
    return reader.read()


def _all_curves(runs: Sequence[RunData]) -> list[RunCurves]:
    """The curves of runs; those that differ only in their seed have one color, and a label for all of them."""
    recipes = [_recipe(run) for run in runs]
    colors = list(dict.fromkeys(recipes))
    found = []
    for number, (run, recipe) in enumerate(zip(runs, recipes, strict=True)):
        label = run.label + (f" (from {run.branch.place})" if run.branch else "")
        if (others := recipes.count(recipe) - 1) > 0:
            label += f" and {others} more seed{'s' if others > 1 else ''}"
        first = recipes.index(recipe) == number
        found.append(_curves(run, runs, label=label if first else "", color=colors.index(recipe)))
    return found


def _recipe(run: RunData) -> tuple[object, ...]:
    """Key of a run's config without its seed, equal for runs that differ only there; the label if it has no config."""
    own = ("name", "runs_dir", "seed")
    config = tuple((key, value) for key, value in flatten(run.config) if key not in own)
    return (config, run.branch and run.branch.step) if config else (run.label,)


def _curves(run: RunData, runs: Sequence[RunData], *, label: str, color: int) -> RunCurves:
    """The curves of a run. Those of a fork begin with its parent's values at that step, if the parent is there."""
    columns = {name: run.column(name) for name in ("tokens", "train/loss", "valid/loss", "train/lr")}
    steps, branch = run.steps, run.branch
    parent = next((other for other in runs if branch and other.provenance.get("id") == branch.id), None)
    if branch is not None and parent is not None and branch.step in parent.steps:
        row = int(np.flatnonzero(parent.steps == branch.step)[0])
        steps = np.concatenate([[branch.step], steps])
        first = {name: parent.column(name)[row] for name in ("tokens", "valid/loss", "train/lr")}
        columns = {name: np.concatenate([[first.get(name, np.nan)], values]) for name, values in columns.items()}
    tokens = columns.pop("tokens")
    return RunCurves(label, color, steps, tokens, columns)


def _figures_table(runs: Sequence[RunData]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    names = ("step", "tokens", "training loss", "best held-out", "at step", "tokens/s", "goodput", "restarts", "time")
    for name in names:
        table.add_column(name, justify="right")
    has_forks = any(run.branch for run in runs)
    if has_forks:
        table.add_column("forked from", overflow="fold")
    for run in runs:
        found = figures_of(run)
        parent = [Text("-" if run.branch is None else run.branch.place)] if has_forks else []
        table.add_row(Text(run.label), Text(found.state), *_cells(found), *parent)
    return table


def _cells(found: Figures) -> list[str]:
    return [
        f"{found.step:,}/{found.max_steps:,}" if found.max_steps else f"{found.step:,}",
        show_count(found.tokens),
        show(found.train_loss),
        show(found.best_loss),
        f"{found.best_step:,}" if found.best_step else "-",
        show(found.tokens_per_second),
        f"{found.share:.1%}" if np.isfinite(found.share) else "-",
        str(found.restarts),
        format_duration(found.running_s),
    ]


def _config_table(labels: Sequence[str], rows: Sequence[ConfigRow]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("differing key", *labels):
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(row.key, *(Text("-" if value is None else value) for value in row.values))
    return table
