"""Fine-tune classifiers, one run per seed, and classify new texts: `xlpretrain finetune` and `predict`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import cast

import numpy as np

import xlpretrain
from launcher.local.options import StartOptions
from launcher.local.train import start_training
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.config import LabelledDataConfig
from xlpretrain.data.labelled import UNLABELLED, label_numbers
from xlpretrain.data.tables.text_tables import read_table, refuse_same_file
from xlpretrain.errors import LaunchError
from xlpretrain.evaluation.classification import ClassificationMetrics, write_predictions
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.finetune.results import finetune_config
from xlpretrain.run_dir.layout import RunDir

_MOST_NAMED = 5
_FIGURES = ("accuracy", "macro_f1", "roc_auc")


def finetune(
    path: Path,
    *,
    train: Path,
    valid: Path,
    name: str | None,
    text: Sequence[str],
    label: str,
    overrides: list[str],
    num_seeds: int,
    runs_dir: Path,
    options: StartOptions,
) -> int:
    """Train a run in runs_dir/name or, with several seeds, in runs_dir/name/seed-N. Returns the exit code.

    Runs that exist are resumed, so repeating the call continues it. Raises `XLPretrainError`.
    """
    source, name = RunDir(path).check_exists(), name or f"{path.resolve().name}-finetuned"
    config = finetune_config(
        source, train=train, valid=valid, name=name, runs_dir=runs_dir, text=text, label=label, overrides=overrides
    )
    configs = [config] if num_seeds == 1 else [_of_seed(config, seed) for seed in range(1, num_seeds + 1)]
    if RunDir(runs_dir / name).exists() and num_seeds > 1:
        raise LaunchError(f"{runs_dir / name}: is a single-seed run; choose another name for several seeds (--name)")
    for one in configs:
        code = start_training(one, options)
        if code:
            return code
    if num_seeds > 1:
        _sum_up(runs_dir / name, [one.folder for one in configs])
    return 0


def predict(path: Path, data: Path | None, to: Path | None, *, step: int | None, precision: str | None) -> None:
    """Print or write a prediction for each text in a file; print metrics if the file has labels."""
    run = xlpretrain.load(path, step=step, precision=precision)
    refuse_same_file(data, to)
    columns, labels = run.is_classifier
    label = cast(LabelledDataConfig, run.config.data).label
    table = read_table(data, optional=[label])
    if len(columns) == 1 and len(table.columns) == 1:
        columns = table.columns  # a single column is the text, whatever its name
    texts = table.columns_of(columns)
    truth = table.column(label) if label in table.columns else None
    found = run.predict_classes(texts)
    probabilities = found.probabilities
    if to is not None:
        write_predictions(to, columns, texts, probabilities, labels, truth)
        print(f"{to}: {len(texts):,} predictions")
    else:
        for row in probabilities:
            print(f"{labels[row.argmax()]}\t{row.max():.4f}")
    if found.num_cut:
        cut = run.config.objective.describe_cut(found.num_cut, len(texts))
        print(f"{table.name}: {cut}", file=sys.stderr)
    if truth is not None:
        _print_metrics(table.name, truth, probabilities, labels)


def _print_metrics(name: str, truth: Sequence[str], probabilities: np.ndarray, labels: Sequence[str]) -> None:
    """Print metrics over the examples with a known label, and the number of examples with an unknown one or none."""
    numbers = label_numbers(truth, labels)
    known = [i for i, number in enumerate(numbers) if number != UNLABELLED]
    others = Counter(value.strip() for value, number in zip(truth, numbers, strict=True) if number == UNLABELLED)
    if others:
        most = ", ".join(f"{value!r} ({count:,})" for value, count in others.most_common(_MOST_NAMED))
        more = f" and {len(others) - _MOST_NAMED:,} others" if len(others) > _MOST_NAMED else ""
        print(
            f"{name}: {others.total():,} of {len(truth):,} examples have labels unknown to the classifier:"
            f" {most}{more}; they are excluded from the metrics",
            file=sys.stderr,
        )
    if known:
        figures = ClassificationMetrics.compute([labels[numbers[i]] for i in known], probabilities[known], labels)
        print(figures.describe(), file=sys.stderr)


def _of_seed(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"runs_dir": config.runs_dir / config.name, "name": f"seed-{seed}", "seed": seed})


def _sum_up(folder: Path, runs: Sequence[RunDir]) -> None:
    """Print the mean and standard deviation over seeds of each metric, and write them to metrics.json."""
    found = [json.loads(run.figures.read_text(encoding="utf-8")) for run in runs]
    summary = {}
    for figure in _FIGURES:
        values = [one[figure] for one in found]
        if None not in values:
            summary[figure] = {"mean": mean(values), "spread": stdev(values), "values": values}
    atomic_write(RunDir(folder).figures, json.dumps(summary, indent=2) + "\n")
    told = ", ".join(f"{name} {of['mean']:.4f} ± {of['spread']:.4f}" for name, of in summary.items())
    print(f"{folder}: {told} (mean and standard deviation of {len(runs)} seeds)")
