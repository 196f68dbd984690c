"""Export, import, fork and average models, and generate text: `xlpretrain export`, `import`, `fork` and so on."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xlpretrain
from xlpretrain.branches import average as averages
from xlpretrain.branches import fork as forks
from xlpretrain.config import run_config
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.hub import export as exports
from xlpretrain.hub import import_model as imports
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.run_dir.layout import RunDir


def export(run: Path, to: Path, *, step: int | None, force: bool, weights: str, part: str | None) -> None:
    """Export a run's model for transformers and print how to load it. Raises `XLPretrainError`."""
    loader = exports.export(RunDir(run).check_exists(), to, step=step, force=force, weights=weights, part=part)
    print(f"{to}: load it in transformers with {loader.replace('DIR', repr(str(to)))}")


def import_model(
    source: Path, overrides: Sequence[str], *, name: str, runs_dir: Path, data: Path | None, tokenizer: Path | None
) -> None:
    """Import a third-party model as a run folder and print how to use it. Raises `XLPretrainError`."""
    folder, notes = imports.import_model(
        source, name=name, runs_dir=runs_dir, data=data, tokenizer=tokenizer, overrides=list(overrides)
    )
    for note in notes:
        print(note)
    if isinstance(run_config.load(folder.config).objective, Task):
        print(f"{folder.path}: use it with `xlpretrain predict {folder.path}`, or go on with `xlpretrain finetune`")
    else:
        print(f"{folder.path}: to start a run from it, set init_from={folder.path}")


def fork(run: Path, overrides: Sequence[str], *, step: int | None, name: str, runs_dir: Path | None) -> None:
    """Fork a run and print what is changed and how to train it. Raises `XLPretrainError`."""
    folder, notes = forks.fork(
        RunDir(run).check_exists(), step=step, name=name, runs_dir=runs_dir, overrides=list(overrides)
    )
    for note in notes:
        print(note)
    print(f"to train it: xlpretrain resume {shlex.quote(str(folder.path))}")


def average(run: Path, *, last: int | None, steps: str | None, name: str, runs_dir: Path | None) -> None:
    """Write the mean of some checkpoints of a run and print which. Raises `XLPretrainError`."""
    if (last is None) == (steps is None):
        raise ConfigError("give either --last N, or --steps A,B,...")
    try:
        wanted = [int(step) for step in (steps or "").split(",") if step.strip()]
    except ValueError:
        raise ConfigError(f"--steps: expected steps separated by commas, such as 100,200, got {steps!r}") from None
    folder, found = averages.average(
        RunDir(run).check_exists(), last=last or 0, steps=wanted, name=name, runs_dir=runs_dir
    )
    print(f"{folder.path}: mean of the weights of steps {', '.join(f'{step:,}' for step in found)}")


def generate(
    run: Path,
    prompt: str | None,
    *,
    step: int | None,
    precision: str | None,
    weights: str,
    part: str | None,
    **sampling: Any,
) -> None:
    """Print a prompt and its continuation. Raises `XLPretrainError`.

    Args:
        run: run folder.
        prompt: text to continue; None: standard input.
        step: checkpoint to use; None: the newest.
        precision: type of the weights; None: as trained.
        weights: those that were trained, or their moving average.
        part: of a mixed objective; None: the first one that can.
        sampling: passed to `LoadedRun.generate`.
    """
    if prompt is None:
        prompt = _read_prompt()
    model = xlpretrain.load(run, step=step, precision=precision, weights=weights, part=part)
    print(prompt + model.generate(prompt, **sampling))


def _read_prompt() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 text (byte {error.start})") from None
