"""Evaluate runs and look at their samples: `xlpretrain eval`, `report` and `data show`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from launcher.local import torchrun
from xlpretrain.config import run_config
from xlpretrain.errors import ConfigError
from xlpretrain.evaluation.context_length import is_even
from xlpretrain.evaluation.report import print_report, sample_runs
from xlpretrain.evaluation.report_page.page import TextSample
from xlpretrain.evaluation.sample_viewer import show_document, show_sample
from xlpretrain.extras import require
from xlpretrain.run_dir.layout import RunDir


def evaluate(
    runs: Sequence[Path],
    moved: Sequence[str],
    options: Mapping[str, str | int | Path | Sequence[int] | None],
    *,
    to: Path | None,
    plot: Path | None,
    recl: bool,
    num_processes: int | None,
) -> int:
    """Score held-out text on this machine. Returns the exit code. Raises `XLPretrainError`.

    Args:
        runs: run folders.
        moved: overrides with the current paths of their data.
        options: flags of `xlpretrain.evaluation` without dashes, and their values; None: not given.
        to: file for the figures of a curve over memory lengths. plot: file for its plot.
        recl: print the relative effective context length too.
        num_processes: number of ranks; None: the default.
    """
    _check_curve(options, to=to, plot=plot, recl=recl)
    configs = [run_config.load(RunDir(run).check_exists().config) for run in runs]
    options = {**options, "to": to, "plot": plot}
    if recl:
        options = {**options, "recl": True, "same-length": True}
    num_streams = int(cast(int, options["num-streams"]) or min(config.eval.num_streams for config in configs))
    given = [f"--moved={item}" for item in moved]
    given += [_flag(name, value) for name, value in options.items() if value is not None]
    num_processes = num_processes or torchrun.default_num_processes(num_streams)
    arguments = [*map(str, runs), *given]
    ended = torchrun.launch("xlpretrain.evaluation.__main__", arguments, num_processes=num_processes)
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


def _check_curve(options: Mapping[str, object], *, to: Path | None, plot: Path | None, recl: bool) -> None:
    """Refuse what a curve cannot do before anything is loaded. Raises `XLPretrainError`."""
    for flag, path, suffixes in (("--to", to, (".json", ".csv")), ("--plot", plot, (".png",))):
        if path is None:
            continue
        if path.suffix not in suffixes:
            raise ConfigError(f"{flag}: expected a file named *{' or *'.join(suffixes)}, got {path}")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{flag}: {path.absolute().parent} is not a folder; make it first")
        if path.is_dir():
            raise ConfigError(f"{flag}: {path} is a folder; expected a file")
    if plot is not None:
        require("matplotlib", "eval --plot")
    if recl:
        lengths = options["mem-len"]
        if not isinstance(lengths, list) or lengths[0] < 1 or not is_even(lengths):
            raise ConfigError("--recl needs memory lengths above 0 in equal steps, such as --mem-len 64,128,192,256")
        if options["same-length"] is False:
            raise ConfigError("--recl and --no-same-length: with --recl every token attends to equally many positions")


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
