"""Inspect, profile, compare and stop runs: `xlpretrain status`, `logs`, `profile`, `report`, `checkpoints` and so on.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.cli.monitor import checkpoints as checkpoint_list
from launcher.cli.monitor import find_runs, lifecycle, profiles, report
from launcher.cli.monitor import logs as run_logs
from launcher.cli.monitor.status import show_all, show_one
from xlpretrain.evaluation.report_page.page import TextSample
from xlpretrain.run_dir.layout import RunDir


def find(path: Path) -> RunDir:
    """The run in a folder, started or submitted. Raises `LaunchError` if there is none."""
    return find_runs.require(path)


def stop(run: Path) -> str:
    """Request that a run saves, exits and stays stopped. Returns a message for the user. Raises `LaunchError`."""
    return lifecycle.stop(find(run))


def cancel(run: Path) -> str:
    """Cancel a run's job and wait until it is gone. Returns a message for the user. Raises `LaunchError`."""
    return lifecycle.cancel(find(run))


def status(run: Path | None, runs_dir: Path) -> None:
    """Print a run's details, or a table of all runs in `runs_dir`. Raises `LaunchError`."""
    if run is None:
        show_all(runs_dir)
    else:
        show_one(run)


def logs(run: Path, *, rank: int | None, num_lines: int, follow: bool) -> None:
    """Print the logs of a run or of one rank. Raises `LaunchError`."""
    run_logs.show(find(run), rank=rank, num_lines=num_lines, follow=follow)


def profile(run: Path, *, step: int | None, rank: int | None, plot: Path | None) -> None:
    """Print, and plot, the shares of a run's profiled steps. Raises `XLPretrainError`."""
    profiles.show(run, step=step, rank=rank, plot=plot)


def checkpoints(run: Path, *, verify: bool) -> bool:
    """Print the checkpoints of a run. Returns False if one is damaged. Raises `LaunchError`."""
    return checkpoint_list.show(RunDir(run).check_exists().checkpoints, verify=verify)


def compare(runs: Sequence[Path]) -> None:
    """Print runs side by side. Raises `LaunchError`."""
    report.print_comparison(runs)


def write_page(
    runs: Sequence[Path], file: Path, *, force: bool, make_samples: Callable[[], Sequence[TextSample]]
) -> None:
    """Write the report on runs as an HTML page. Raises `XLPretrainError`."""
    report.write_page(runs, file, force=force, make_samples=make_samples)


def plot(runs: Sequence[Path], file: Path) -> None:
    """Plot runs over each other. Raises `XLPretrainError`."""
    report.write_plot(runs, file)


def watch(runs: Sequence[Path], *, port: int) -> None:
    """Serve that page, as it grows, until Ctrl-C. Raises `LaunchError`."""
    report.watch(runs, port=port)
