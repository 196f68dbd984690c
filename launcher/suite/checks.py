"""Checks of a suite before any of it starts, in one report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.suite.definition import FinetuneTask, PairsTask, SuiteConfig, SuiteTask
from launcher.suite.jobs import Job, prepared, prepared_files
from launcher.suite.pairs import check_pairs
from launcher.suite.sources import prepare
from xlpretrain.config import origin, run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.examples.config import ExampleDataConfig
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import DataError, XLPretrainError
from xlpretrain.extras import require
from xlpretrain.objectives import find_task
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.schema import Problem


def missing_files(config: SuiteConfig) -> Iterator[Problem]:
    """Yield each file that a task needs and that does not exist."""
    for task in config.tasks:
        for key, path in task.files().items():
            if not path.exists():
                yield f"{task.name}.{key}", f"{path}: no such file"


def prepare_files(task: SuiteTask, folder: Path) -> Iterator[str]:
    """Write the files that have to be rewritten to `folder`/data, and yield a note if rows are left out.

    Raises `DataError`, OSError.
    """
    if not isinstance(task, FinetuneTask) or not task.is_prepared:
        return
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for source, target in prepared_files(task, folder).items():
        num_left_out = prepare(
            source,
            target,
            text=task.text,
            label=task.label,
            plain_tsv=task.format == "plain_tsv",
            columns=task.columns,
        )
        if num_left_out:
            yield f"{source}: {num_left_out:,} rows with too few or too many fields are left out"


def check_jobs(jobs: Sequence[Job]) -> Iterator[Problem]:
    """Read the files of all tasks as each run would, and yield what is wrong with tasks, files, configs and runs.

    A task that a run has begun has been checked then. Nothing is written but temporary files.
    """
    checked = {(job.subject.path, job.task.name) for job in jobs if job.is_begun}
    errors: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory(prefix="xlpretrain-suite-") as place:
        for job in jobs:
            name = job.task.name
            if (job.subject.path, name) in checked:
                continue
            checked.add((job.subject.path, name))
            if name not in errors:
                errors[name] = _error_of_files(job.task, Path(place))
                if (message := errors[name]) is not None:
                    yield name, message
            if errors[name] is None:
                try:
                    _check(Job(Path(place), job.subject, job.task, job.seed))
                except XLPretrainError as error:
                    yield f"{name} of {job.subject.run}", _indented(error)


def _error_of_files(task: SuiteTask, place: Path) -> str | None:
    """The fault of a task's files for any run; None if they have none."""
    try:
        if isinstance(task, FinetuneTask):
            for package in find_task(task.type).needs:
                require(package, f"a task of type {task.type}")
            for _ in prepare_files(task, place):
                pass
        elif isinstance(task, PairsTask):
            check_pairs(task)
    except XLPretrainError as error:
        return _indented(error)
    return None


def _check(job: Job) -> None:
    """Make the job's config and open its files, in memory. Raises `XLPretrainError`."""
    if isinstance(job.task, PairsTask):
        folder = RunDir(job.subject.path)
        config = run_config.load(folder.config)
        config.objective.likelihood_queries([0], origin.open_tokenizer(folder, config).vocabulary)
        return
    assert isinstance(job.task, FinetuneTask)
    config = job.config()
    _check_parts(config, prepared(job.task, job.folder))


def _check_parts(config: RunConfig, task: FinetuneTask) -> None:
    objective, data = config.objective, config.data
    if not isinstance(objective, Task) or not isinstance(data, ExampleDataConfig):
        raise DataError(f"expected a task, got objective {objective.type}; remove it from overrides")
    if task.parts:
        tokenizer = load_tokenizer(data.tokenizer)
        for path in task.parts.values():
            objective.check(data.open_split(path, tokenizer))


def _indented(error: XLPretrainError) -> str:
    return str(error).replace("\n", "\n    ")
