"""The scores of a suite: each task's metrics in percent, over seeds, with the mean over tasks. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # imports torch
    from launcher.suite.definition import PublishedFigure, SuiteConfig, SuiteTask
    from launcher.suite.jobs import Job, Metrics

MEAN = "mean over tasks"


class Row(NamedTuple):
    """A line of the table. part: of the task; empty for the whole."""

    task: str
    part: str
    metric: str

    @property
    def title(self) -> str:
        """Task and part."""
        return f"{self.task}: {self.part}" if self.part else self.task


@dataclass(frozen=True)
class Cell:
    """The values of a metric by seed, in percent.

    num_jobs: expected number of values. num_failed: jobs that failed. num_undefined: values that are undefined, such as
    a correlation with constants.
    """

    values: tuple[float, ...] = ()
    num_jobs: int = 1
    num_failed: int = 0
    num_undefined: int = 0

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without values."""
        return mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds, of a sample; None for fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def is_complete(self) -> bool:
        """True if there is a value for every seed."""
        return len(self.values) == self.num_jobs

    @property
    def state(self) -> str:
        """`finished`, or what is missing: `failed`, `undefined`, `unfinished`."""
        if self.num_failed:
            return "failed"
        return "finished" if self.is_complete else "undefined" if self.num_undefined else "unfinished"

    def show(self) -> str:
        """The mean and standard deviation, with the number of seeds if some are missing; else the state."""
        if not self.values:
            return "-" if self.state == "unfinished" else self.state
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        missing = "" if self.is_complete else f" ({len(self.values)} of {self.num_jobs}{self._lacking})"
        return f"{self.mean:.2f}{deviation}{missing}"

    @property
    def _lacking(self) -> str:
        return f", {self.num_failed} failed" if self.num_failed else ""


@dataclass(frozen=True)
class Scores:
    """A table: rows, columns by the labels of checkpoints, and published figures by row and model."""

    rows: Sequence[Row]
    labels: Sequence[str]
    cells: Mapping[tuple[Row, str], Cell]
    means: Mapping[str, Cell]
    published: Mapping[tuple[Row, str], PublishedFigure] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """The models of published figures, in the order of the suite."""
        return list(dict.fromkeys(model for _, model in self.published))


def collect(config: SuiteConfig, jobs: Sequence[Job], failed: Collection[str]) -> Scores:
    """The scores of all jobs that have been finished. failed: labels of the jobs that failed."""
    labels = list(dict.fromkeys(job.subject.label for job in jobs))
    results = {job.label: job.read() for job in jobs}
    rows: list[Row] = []
    cells: dict[tuple[Row, str], Cell] = {}
    published: dict[tuple[Row, str], PublishedFigure] = {}
    for task in config.tasks:
        own = [job for job in jobs if job.task.name == task.name]
        of_task = _rows(task, [found for job in own if (found := results[job.label]) is not None])
        rows += of_task
        for row in of_task:
            for label in labels:
                cells[row, label] = _cell(row, [job for job in own if job.subject.label == label], results, failed)
        for figure in task.published:
            published[Row(task.name, figure.part, figure.metric or task.reported[0]), figure.model] = figure
    shown = {key: figure for key, figure in published.items() if key[0] in rows}
    means = {label: _mean(config, rows, cells, label) for label in labels}
    return Scores(rows, labels, cells, means, shown)


def _rows(task: SuiteTask, found: Sequence[Metrics]) -> list[Row]:
    """The rows of a task; the groups of minimal pairs are known once some are scored."""
    parts = dict.fromkeys(["", *getattr(task, "parts", ()), *(part for metrics in found for part in metrics)])
    return [Row(task.name, part, metric) for part in parts for metric in task.reported]


def _cell(row: Row, jobs: Sequence[Job], results: Mapping[str, Metrics | None], failed: Collection[str]) -> Cell:
    if not jobs:
        return Cell()
    found = [metrics.get(row.part, {}).get(row.metric) for job in jobs if (metrics := results[job.label]) is not None]
    return Cell(
        tuple(jobs[0].task.scale * value for value in found if value is not None),
        num_jobs=len(jobs),
        num_failed=sum(job.label in failed and results[job.label] is None for job in jobs),
        num_undefined=sum(value is None for value in found),
    )


def _mean(config: SuiteConfig, rows: Sequence[Row], cells: Mapping[tuple[Row, str], Cell], label: str) -> Cell:
    """The mean over tasks, seed by seed; a task counts as the mean of its metrics, without groups of minimal pairs.

    If the tasks have different numbers of seeds, one value: the mean over tasks of the means over seeds. Tasks without
    seeds count in each. No value unless every task is finished.
    """
    by_task = [[cells[row, label] for row in rows if row in _whole(task)] for task in config.tasks]
    if not all(cell.is_complete for own in by_task for cell in own):
        return Cell()
    numbers = {own[0].num_jobs for task, own in zip(config.tasks, by_task, strict=True) if task.seeds(1) != (None,)}
    num_seeds = numbers.pop() if len(numbers) == 1 else 1
    columns = [[_by_seed(cell, num_seeds) for cell in own] for own in by_task]
    values = (mean(mean(cell[seed] for cell in own) for own in columns) for seed in range(num_seeds))
    return Cell(tuple(values), num_jobs=num_seeds)


def _whole(task: SuiteTask) -> list[Row]:
    """The rows that count in the mean."""
    return [Row(task.name, part, metric) for part in ["", *getattr(task, "parts", ())] for metric in task.reported]


def _by_seed(cell: Cell, num_seeds: int) -> Sequence[float]:
    return cell.values if cell.num_jobs == num_seeds else [mean(cell.values)] * num_seeds
