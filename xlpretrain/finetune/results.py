"""Fine-tune a pretrained run into a classifier, and write its results."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from xlpretrain import schema
from xlpretrain.config import origin, run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.labelled import LabelledDataset, label_numbers
from xlpretrain.errors import ConfigError
from xlpretrain.evaluation.classification import ClassificationMetrics, write_predictions
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.finetune.config import classifier_config
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.plots import plot_confusion


def finetune_config(
    source: RunDir,
    *,
    train: Path,
    valid: Path,
    name: str,
    runs_dir: Path,
    text: Sequence[str] = (),
    label: str = "label",
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Config of a run that fine-tunes the newest checkpoint of `source` on labelled texts.

    train, valid, text, label: see `classifier_config`. overrides: `key=value` changes to the result. Raises
    `ConfigError` and `DataError`.
    """
    theirs = run_config.load(source.config)
    content = classifier_config(
        theirs,
        tokenizer=origin.open_tokenizer(source, theirs),
        kept_at=origin.open_run_tokenizer(source, theirs),
        train=train,
        valid=valid,
        text=text,
        label=label,
    )
    place = {"name": name, "runs_dir": str(runs_dir)}
    changed = schema.apply_overrides(content | place | {"init_from": str(source.path.absolute())}, overrides, RunConfig)
    if any(changed[key] != value for key, value in place.items()):
        raise ConfigError("name, runs_dir: set them with --name and --runs-dir")
    return schema.validate(RunConfig, changed, f"fine-tuning {source.path}")


def summarize(run: LoadedRun, valid: LabelledDataset) -> ClassificationMetrics:
    """Write a fine-tuned run's held-out results to its folder: predictions.csv, metrics.json, confusion.png."""
    folder = run.folder
    columns, labels = run.is_classifier
    probabilities = run.predict_classes(valid.texts).probabilities
    truth = [labels[number] for number in label_numbers(valid.labels, labels)]
    write_predictions(folder.predictions, columns, valid.texts, probabilities, labels, truth)
    figures = ClassificationMetrics.compute(truth, probabilities, labels)
    atomic_write(folder.figures, json.dumps({"step": run.step, **asdict(figures)}, indent=2) + "\n")
    try:
        plot_confusion(figures.confusion, labels, folder.confusion, title=f"{run.config.name}, step {run.step}")
    except Exception as error:  # a failed plot must not lose the metrics
        print(f"{folder.confusion}: cannot be plotted: {type(error).__name__}: {error}", file=sys.stderr)
    return figures
