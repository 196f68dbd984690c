"""Evaluate runs and look at their samples: `xlpretrain eval`, `report` and `data show`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.local import torchrun
from xlpretrain.config import run_config
from xlpretrain.evaluation.report import print_report, sample_runs
from xlpretrain.evaluation.report_page.page import TextSample
from xlpretrain.evaluation.sample_viewer import show_document, show_sample
from xlpretrain.run_dir.layout import RunDir


def evaluate(
    run: Path, moved: Sequence[str], options: Mapping[str, str | int | None], *, num_processes: int | None
) -> int:
    """Score held-out text on this machine. Returns the exit code. Raises `XLPretrainError`.

    Args:
        run: run folder.
        moved: overrides with the current paths of its data.
        options: flags of `xlpretrain.evaluation` without dashes, and their values; None: not given.
        num_processes: number of ranks; None: the default.
    """
    num_streams = int(options.get("num-streams") or run_config.load(RunDir(run).check_exists().config).eval.num_streams)
    given = [*moved, *(_flag(name, value) for name, value in options.items() if value is not None)]
    num_processes = num_processes or torchrun.default_num_processes(num_streams)
    ended = torchrun.launch("xlpretrain.evaluation.__main__", [str(run), *given], num_processes=num_processes)
    if ended.exit_code < 0 and not ended.signal:
        print(f"error: {ended.describe()}", file=sys.stderr)
    return ended.code


def report(run: Path, moved: Sequence[str]) -> None:
    """Print the report of a run. Raises `XLPretrainError`."""
    print_report(RunDir(run).check_exists(), list(moved))


def samples(runs: Sequence[Path], moved: Sequence[str]) -> list[TextSample]:
    """Text that runs generate, for their page; those that cannot say why."""
    return sample_runs([RunDir(run) for run in runs], moved)


def show(place: Path, *, document: int, step: int | None, stream: int, overrides: Sequence[str]) -> None:
    """Print a document of a dataset or, given a step, a stream's sample at that step. Raises `XLPretrainError`."""
    if step is None:
        show_document(place, document)
    else:
        show_sample(place, step=step, stream=stream, overrides=list(overrides))


def _flag(name: str, value: str | int) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"
