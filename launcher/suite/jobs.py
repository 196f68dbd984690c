"""The jobs of a suite: one fine-tune, or one scoring of minimal pairs, of one checkpoint.

DIR/suite.json              tasks and checkpoints that the results are of (record.py)
DIR/RUN@STEP/TASK-seed-N/   run folder of a fine-tune
DIR/RUN@STEP/TASK-seed-N.json, .log    its metrics, once it is finished; the output of its process
DIR/RUN@STEP/TASK/          scores of minimal pairs, a .jsonl file for each file of pairs
DIR/RUN@STEP/TASK.json, .log           their accuracies, once all are scored; the output of the process
DIR/data/                   files of tasks that had to be rewritten
DIR/table.md, table.csv, scores.png    the results
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.suite.definition import FinetuneTask, PairsTask, SuiteConfig, SuiteTask
from launcher.suite.sources import LABEL, TEXTS
from launcher.suite.subjects import Subject
from xlpretrain.config.run_config import RunConfig
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.finetune.results import finetune_config
from xlpretrain.run_dir.layout import RunDir

Metrics = Mapping[str, Mapping[str, float | None]]
"""Metrics by the part of a task (empty: the whole) and by name; None where one is undefined."""


@dataclass(frozen=True)
class Job:
    """A task for a checkpoint. seed: of the fine-tune; None for minimal pairs. folder: that of the suite's results."""

    folder: Path
    subject: Subject
    task: SuiteTask
    seed: int | None

    @property
    def name(self) -> str:
        """Name of the job among those of its checkpoint."""
        return self.task.name if self.seed is None else f"{self.task.name}-seed-{self.seed}"

    @property
    def label(self) -> str:
        """Name of the job among all."""
        return f"{self.subject.label}/{self.name}"

    @property
    def place(self) -> Path:
        """Run folder of a fine-tune, or folder of the scores of minimal pairs."""
        return self.folder / self.subject.label / self.name

    @property
    def result(self) -> Path:
        """File of the metrics."""
        return self.place.with_name(f"{self.name}.json")

    @property
    def log(self) -> Path:
        """File of the process's output."""
        return self.place.with_name(f"{self.name}.log")

    @property
    def is_begun(self) -> bool:
        """True if there is anything that another definition of the task would mix with."""
        return self.result.exists() or self.place.exists()

    def read(self) -> Metrics | None:
        """The metrics; None if the job is not finished."""
        try:
            found: Metrics = json.loads(self.result.read_text(encoding="utf-8"))
            return found
        except FileNotFoundError:
            return None

    def write(self, metrics: Metrics) -> None:
        """Write the metrics: the job is finished. Raises OSError."""
        atomic_write(self.result, json.dumps(metrics, indent=2) + "\n")

    def config(self) -> RunConfig:
        """The config of a fine-tune. Raises `ConfigError` and `DataError`."""
        assert isinstance(self.task, FinetuneTask) and self.seed is not None
        task, checkpoint = prepared(self.task, self.folder), self.subject.checkpoint
        config = finetune_config(
            RunDir(self.subject.path),
            task=task.type,
            train=task.train,
            valid=task.valid,
            name=self.name,
            runs_dir=self.place.parent,
            text=task.text,
            label=task.label,
            overrides=[f"init_from={json.dumps(checkpoint and str(checkpoint))}", *task.overrides],
        )
        return config.model_copy(update={"seed": self.seed})


def list_jobs(config: SuiteConfig, subjects: Sequence[Subject], folder: Path) -> Iterator[Job]:
    """The jobs of a suite, checkpoint by checkpoint, in the order of the tasks; random weights score no pairs."""
    for subject in subjects:
        for task in config.tasks:
            if subject.checkpoint is None and isinstance(task, PairsTask):
                continue
            for seed in task.seeds(config.num_seeds):
                yield Job(folder, subject, task, seed)


def prepared_files(task: FinetuneTask, folder: Path) -> dict[Path, Path]:
    """The file that is rewritten for each of a task's files."""
    return {path: folder / "data" / f"{task.name}-{key}.jsonl" for key, path in task.files().items()}


def prepared(task: FinetuneTask, folder: Path) -> FinetuneTask:
    """The task as its fine-tunes read it: with the rewritten files in `folder`, if it needs them."""
    if not task.is_prepared:
        return task
    files = prepared_files(task, folder)
    return task.model_copy(
        update={
            "train": files[task.train],
            "valid": files[task.valid],
            "parts": {name: files[path] for name, path in task.parts.items()},
            "text": TEXTS[: len(task.text)],
            "label": LABEL,
        }
    )


def tasks_of(config: SuiteConfig) -> tuple[list[FinetuneTask], list[PairsTask]]:
    """The tasks that are fine-tuned for, and those that are scored."""
    return (
        [task for task in config.tasks if isinstance(task, FinetuneTask)],
        [task for task in config.tasks if isinstance(task, PairsTask)],
    )
