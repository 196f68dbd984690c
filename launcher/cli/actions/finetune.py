"""Fine-tune runs for tasks, one run per seed, and predict new examples: `xlpretrain finetune` and `predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import xlpretrain
from launcher.local.options import StartOptions
from launcher.local.train import start_training
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.tables.text_tables import refuse_same_file
from xlpretrain.errors import LaunchError
from xlpretrain.extras import require
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.finetune.results import finetune_config
from xlpretrain.objectives import find_task
from xlpretrain.run_dir.layout import RunDir


def finetune(
    path: Path,
    *,
    task: str,
    train: Path,
    valid: Path,
    name: str | None,
    text: Sequence[str],
    label: Sequence[str],
    overrides: list[str],
    num_seeds: int,
    part: str | None,
    runs_dir: Path,
    options: StartOptions,
) -> int:
    """Train a run in runs_dir/name or, with several seeds, in runs_dir/name/seed-N. Returns the exit code.

    Runs that exist are resumed, so repeating the call continues it. Raises `XLPretrainError`.
    """
    for package in find_task(task).needs:
        require(package, f"xlpretrain finetune --task {task}")
    source, name = RunDir(path).check_exists(), name or f"{path.resolve().name}-finetuned"
    config = finetune_config(
        source,
        task=task,
        train=train,
        valid=valid,
        name=name,
        runs_dir=runs_dir,
        text=text,
        label=label,
        overrides=overrides,
        part=part,
    )
    configs = [config] if num_seeds == 1 else [_of_seed(config, seed) for seed in range(1, num_seeds + 1)]
    if RunDir(runs_dir / name).exists() and num_seeds > 1:
        raise LaunchError(f"{runs_dir / name}: is a single-seed run; choose another name for several seeds (--name)")
    for one in configs:
        code = start_training(one, options)
        if code:
            return code
    if num_seeds > 1:
        _sum_up(runs_dir / name, [one.folder for one in configs], metrics=find_task(task).metric_names)
    return 0


def predict(
    path: Path, data: Path | None, to: Path | None, *, step: int | None, precision: str | None, weights: str
) -> None:
    """Print or write a prediction for each example in a file; print metrics if the file has targets."""
    run = xlpretrain.load(path, step=step, precision=precision, weights=weights)
    refuse_same_file(data, to)
    task, files = run.task
    examples = files.open_unlabelled(data, run.tokenizer)
    name, has_targets = str(examples.path), any(example.target is not None for example in examples.examples)
    for package in task.needs if has_targets else ():
        require(package, f"scoring the targets of {name}")
    predictions = run.predictions(examples)
    if to is not None:
        task.write(to, examples, predictions)
        print(f"{to}: {len(predictions):,} predictions")
    else:
        for line in task.lines(predictions):
            print(line)
    if num_cut := task.num_cut(example.parts for example in examples.examples):
        print(f"{name}: {task.describe_cut(num_cut, len(predictions))}", file=sys.stderr)
    if unknown := task.describe_unknown(examples):
        print(f"{name}: {unknown}", file=sys.stderr)
    report = task.report(examples, predictions) if has_targets else {"num_examples": 0}
    if report["num_examples"]:
        print(task.describe(report), file=sys.stderr)


def _of_seed(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"runs_dir": config.runs_dir / config.name, "name": f"seed-{seed}", "seed": seed})


def _sum_up(folder: Path, runs: Sequence[RunDir], *, metrics: Sequence[str]) -> None:
    """Print the mean and standard deviation over seeds of each metric, and write them to metrics.json."""
    found = [json.loads(run.figures.read_text(encoding="utf-8")) for run in runs]
    summary = {}
    for figure in metrics:
        values = [one[figure] for one in found]
        if None not in values:
            summary[figure] = {"mean": mean(values), "spread": stdev(values), "values": values}
    atomic_write(RunDir(folder).figures, json.dumps(summary, indent=2) + "\n")
    figures = ", ".join(f"{name} {of['mean']:.4f} ± {of['spread']:.4f}" for name, of in summary.items())
    print(f"{folder}: {figures} (mean and standard deviation of {len(runs)} seeds)")
