"""`xlpretrain data build`: builds a dataset from its sources and publishes it atomically."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from data_pipelines.build.build_warnings import find_warnings
from data_pipelines.build.up_to_date import is_up_to_date, open_splits
from data_pipelines.config import DataConfig
from data_pipelines.execution.progress import ProgressReporter
from data_pipelines.execution.workers import WorkerDiedError, Workers
from data_pipelines.sharding import write_shards
from data_pipelines.sharding.claims import claims
from data_pipelines.sharding.report import print_report, read_report, write_report
from data_pipelines.sharding.stats import summary_table
from data_pipelines.sources.find import refuse_changed
from data_pipelines.stages import deduplicate, encode, read
from data_pipelines.stages.plan import make_plan
from data_pipelines.stages.work_dir import Stage, WorkDir, run_task
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import DataError
from xlpretrain.file_system.atomic_dirs import publish_dir
from xlpretrain.file_system.atomic_files import is_temporary
from xlpretrain.file_system.urls import is_url
from xlpretrain.tracking.printing import AnswerConsole


@dataclass(frozen=True)
class BuildReport:
    """The result of a build. reused: the dataset existed already. seconds: duration of each stage."""

    out: Path
    splits: Mapping[str, TokenDataset]
    reused: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)


def build(config: DataConfig, *, force: bool = False, console: Console | None = None) -> BuildReport:
    """Build the dataset that `config` describes, unless it exists. force: replace the dataset in `config.out`.

    A killed build resumes when called again. A failed one leaves `config.out` unchanged. Raises `DataError`.
    """
    console = console or AnswerConsole()
    work = WorkDir.of(config.out)
    if is_up_to_date(config, console, force=force):
        work.remove_unless_in_use()
        return BuildReport(config.out, open_splits(config.out), reused=True)
    stages = ProgressReporter(console)
    with build_lock(work), Workers(config.workers) as workers:
        start_build(config, work, stages, workers)
        for stage in stages_of(config):
            run_stage(work, stage, stages, workers)
        publish(work, replace=force)
    return print_summary(config.out, stages)


def print_summary(out: Path, stages: ProgressReporter) -> BuildReport:
    """Print the tables and warnings of a finished build."""
    splits = open_splits(out)
    stages.console.print(summary_table(str(out), splits))
    print_report(stages.console, out, read_report(out))
    return BuildReport(out, splits, seconds=stages.seconds)


def stages_of(config: DataConfig) -> list[Stage]:
    """The stages of a build, in order."""
    near = [deduplicate.NEAR_STAGE] if config.clean.minhash_dedup else []
    paragraphs = [deduplicate.PARAGRAPH_STAGE] if config.clean.duplicate_paragraphs else []
    return [read.STAGE, *near, *paragraphs, encode.TOKENIZER_STAGE, encode.STAGE, write_shards.STAGE]


@contextmanager
def build_lock(work: WorkDir) -> Iterator[None]:
    """Hold the build lock of the work folder, and remove the folder after an error that a rerun could not resume from.

    Raises `DataError` instead of OSError.
    """
    try:
        with work.lock():
            try:
                yield
            except KeyboardInterrupt:
                print(f"\nstopped by Ctrl-C; {_goes_on(work)}", file=sys.stderr, flush=True)
                raise
            except WorkerDiedError as error:
                raise WorkerDiedError(f"{error}; {_goes_on(work)}") from None
            except DataError:
                work.remove()
                raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{error.filename or work.folder}: cannot be written: {reason}; {_goes_on(work)}") from None


def start_build(config: DataConfig, work: WorkDir, stages: ProgressReporter, workers: Workers) -> None:
    """Find the sources and write the plan, or resume a build with the same plan. Raises `DataError`, OSError."""
    goes_on = work.begin(make_plan(config, work.spool, stages, workers))
    if not work.dataset.is_dir():  # killed right after publishing
        work.forget(write_shards.NAME)
    if goes_on:
        stages.console.print(f"resuming the build in {work.folder}", highlight=False)


def run_stage(
    work: WorkDir, stage: Stage, stages: ProgressReporter, workers: Workers, *, part: slice = slice(None)
) -> None:
    """Run the unfinished tasks of a stage. part: the tasks of this job. Raises `DataError`, OSError."""
    sizes = stage.sizes(work)
    own = range(len(sizes))[part]
    waiting = [task for task in own if not work.is_done(stage.name, task)]
    total, left = sum(sizes[task] for task in own), sum(sizes[task] for task in waiting)
    with stages.stage(stage.title, "MB", total / 1e6, done=(total - left) / 1e6) as advance:
        for task in workers.finish(partial(run_task, work, stage), waiting):
            advance(sizes[task] / 1e6)


def publish(work: WorkDir, *, replace: bool) -> None:
    """Write the report and indexes, and rename the dataset to `out`. Raises `DataError`, OSError."""
    plan = work.plan
    for path in [path for path in work.dataset.rglob(".*") if is_temporary(path)]:
        path.unlink()  # left by a killed process
    refuse_changed(file for file in plan.files if not is_url(file.path))
    found, kept = work.counts(read.NAME), work.counts(encode.NAME)
    cleaned = {**read.cleaned(found), **encode.cleaned(kept)}
    trained_on = work.counts(encode.TOKENIZER)
    write_report(
        work.dataset,
        num_read=found["read"],
        num_kept=kept["kept"],
        cleaned=cleaned,
        trained_on=trained_on,
        warnings=list(find_warnings(plan.config, kept, trained_on)),
    )
    write_shards.write_indexes(work, plan.built_from)
    publish_dir(work.dataset, plan.out, claims=claims if replace else None)
    work.remove()


def _goes_on(work: WorkDir) -> str:
    return f"finished tasks are kept in {work.folder}: run the same command again to resume, or remove the folder"
