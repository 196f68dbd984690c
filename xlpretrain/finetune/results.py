"""Fine-tune a pretrained run for a task, and write its results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlpretrain import schema
from xlpretrain.config import origin, run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.errors import ConfigError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.extras import MissingPackageError
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.finetune.config import task_config
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.plots import plot_confusion


def finetune_config(
    source: RunDir,
    *,
    task: str = "classify",
    train: Path,
    valid: Path,
    name: str,
    runs_dir: Path,
    text: Sequence[str] = (),
    label: str | Sequence[str] = "label",
    overrides: Sequence[str] = (),
    part: str | None = None,
) -> RunConfig:
    """Config of a run that fine-tunes the newest checkpoint of `source` for a task.

    task, train, valid, text, label: see `task_config`. overrides: `key=value` changes to the result. part: of a mixed
    objective, whose token layout is used (default: the first that has one). Raises `ConfigError` and `DataError`.
    """
    theirs = run_config.load(source.config).of_part(part, "token_layout")
    content = task_config(
        theirs,
        task=task,
        tokenizer=origin.open_tokenizer(source, theirs),
        kept_at=origin.open_run_tokenizer(source, theirs),
        train=train,
        valid=valid,
        text=text,
        label=label,
        data_overrides=[override for override in overrides if override.lstrip().startswith("data.")],
    )
    place = {"name": name, "runs_dir": str(runs_dir)}
    changed = schema.apply_overrides(content | place | {"init_from": str(source.path.absolute())}, overrides, RunConfig)
    if any(changed[key] != value for key, value in place.items()):
        raise ConfigError("name, runs_dir: set them with --name and --runs-dir")
    files = {"train": str(train.absolute()), "valid": str(valid.absolute())}
    if any(changed["data"].get(key) != path for key, path in files.items()):
        raise ConfigError("data.train, data.valid: set them with --train and --valid")
    return schema.validate(RunConfig, changed, f"fine-tuning {source.path}")


def summarize(run: LoadedRun, valid: ExampleDataset) -> str:
    """Write a fine-tuned run's held-out results to its folder, and return them in one line.

    Writes predictions.csv, metrics.json and, for a classifier, confusion.png.
    """
    folder, (task, _) = run.folder, run.task
    predictions = run.predictions(valid)
    task.write(folder.predictions, valid, predictions)
    report = task.report(valid, predictions)
    atomic_write(folder.figures, json.dumps({"step": run.step, **report}, indent=2) + "\n")
    if "confusion" in report:
        _plot(run, report)
    return task.describe(report)


def _plot(run: LoadedRun, report: Mapping[str, Any]) -> None:
    """Plot the confusion matrix, or print why not: a failed plot must not lose the metrics."""
    place, title = run.folder.confusion, f"{run.config.name}, step {run.step}"
    try:
        plot_confusion(report["confusion"], report["labels"], place, title=title)
    except MissingPackageError as error:
        print(f"note: {error}", file=sys.stderr)
    except Exception as error:
        print(f"{place}: cannot be plotted: {type(error).__name__}: {error}", file=sys.stderr)
