"""Evaluate runs: `xlpretrain eval` and `report`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.local import torchrun
from xlpretrain.config import run_config
from xlpretrain.evaluation.report import print_report
from xlpretrain.run_dir.layout import RunDir


def evaluate(run: Path, moved: Sequence[str], options: Mapping[str, object], *, num_processes: int | None) -> int:
    """Score held-out text on ranks of this machine. Returns the exit code. Raises `XLPretrainError`.

    Args:
        run: run folder.
        moved: current places of its data, as overrides.
        options: flags of `xlpretrain.evaluation` and their values; None: not given.
        num_processes: number of ranks; None: the default.
    """
    num_streams = run_config.load(RunDir(run).check_exists().config).eval.num_streams
    given = [*moved, *(f"{name}={value}" for name, value in options.items() if value is not None)]
    num_processes = num_processes or torchrun.default_num_processes(num_streams)
    ended = torchrun.launch("xlpretrain.evaluation.__main__", [str(run), *given], num_processes=num_processes)
    if ended.exit_code < 0 and not ended.signal:
        print(f"error: {ended.describe()}", file=sys.stderr)
    return ended.code


def report(run: Path, moved: Sequence[str]) -> None:
    """Print the report of a run. Raises `XLPretrainError`."""
    print_report(RunDir(run).check_exists(), list(moved))
