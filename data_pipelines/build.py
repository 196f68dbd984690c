"""`xlpretrain data build`: from sources to a finished dataset, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from data_pipelines import deduplicating, encoding, reading, shards
from data_pipelines.build_warnings import find_warnings
from data_pipelines.claims import claims
from data_pipelines.config import DataConfig
from data_pipelines.files import is_remote
from data_pipelines.find import refuse_changed
from data_pipelines.finished import is_finished, open_splits
from data_pipelines.parallel import WorkerDiedError, Workers
from data_pipelines.plan import make_plan
from data_pipelines.progress import Stages
from data_pipelines.report import print_report, read_report, write_report
from data_pipelines.stats import summary_table
from data_pipelines.work import Stage, Work, run_task
from xlpretrain.data.manifest import Manifest
from xlpretrain.durable import is_temporary
from xlpretrain.errors import DataError
from xlpretrain.folders import put_in_place


@dataclass(frozen=True)
class BuildReport:
    """What a build made. `reused`: it was there already. `seconds` has the time of each stage."""

    out: Path
    splits: Mapping[str, Manifest]
    reused: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)


def build(config: DataConfig, *, force: bool = False, console: Console | None = None) -> BuildReport:
    """Make the dataset `config` describes, or find that it is made; `force` replaces one made with other settings.

    One that is killed goes on where it was. One that fails leaves `config.out` as it was. Raises `DataError`.
    """
    console = console or Console()
    work = Work.of(config.out)
    if is_finished(config, console, force=force):
        work.remove_unless_in_use()
        return BuildReport(config.out, open_splits(config.out), reused=True)
    stages = Stages(console)
    with owning(work), Workers(config.workers) as workers:
        begin(config, work, stages, workers)
        for stage in stages_of(config):
            run_stage(work, stage, stages, workers)
        finish(work, replace=force)
    return tell(config.out, stages)


def tell(out: Path, stages: Stages) -> BuildReport:
    """Print what a build that is finished made."""
    splits = open_splits(out)
    stages.console.print(summary_table(str(out), splits))
    print_report(stages.console, out, read_report(out))
    return BuildReport(out, splits, seconds=stages.seconds)


def stages_of(config: DataConfig) -> list[Stage]:
    """What a build consists of, in this order."""
    near = [deduplicating.NEAR_STAGE] if config.clean.near_duplicates else []
    paragraphs = [deduplicating.PARAGRAPH_STAGE] if config.clean.duplicate_paragraphs else []
    return [reading.STAGE, *near, *paragraphs, encoding.TOKENIZER_STAGE, encoding.STAGE, shards.STAGE]


@contextmanager
def owning(work: Work) -> Iterator[None]:
    """Be the one who builds there. What was done is removed if the build cannot be mended by going on with it.

    Raises `DataError` in place of OSError.
    """
    try:
        with work.lock():
            try:
                yield
            except WorkerDiedError as error:
                raise WorkerDiedError(f"{error}; {_goes_on(work)}") from None
            except DataError:
                work.remove()
                raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{error.filename or work.folder}: cannot be written: {reason}; {_goes_on(work)}") from None


def begin(config: DataConfig, work: Work, stages: Stages, workers: Workers) -> None:
    """Find the sources and write the plan, or go on with a build that had the same. Raises `DataError`, OSError."""
    goes_on = work.begin(make_plan(config, work, stages, workers))
    if not work.dataset.is_dir():  # killed when it was just in place
        work.forget(shards.NAME)
    if goes_on:
        stages.console.print(f"going on with the build in {work.folder}", highlight=False)


def run_stage(work: Work, stage: Stage, stages: Stages, workers: Workers, *, part: slice = slice(None)) -> None:
    """Do the tasks of a stage that are not done. part: which of them are ours. Raises `DataError`, OSError."""
    sizes = stage.sizes(work)
    own = range(len(sizes))[part]
    waiting = [task for task in own if not work.is_done(stage.name, task)]
    total, left = sum(sizes[task] for task in own), sum(sizes[task] for task in waiting)
    with stages.stage(stage.title, "MB", total / 1e6, done=(total - left) / 1e6) as advance:
        for task in workers.finish(partial(run_task, work, stage), waiting):
            advance(sizes[task] / 1e6)


def finish(work: Work, *, replace: bool) -> None:
    """Complete the dataset and put it in its place. Raises `DataError`, OSError."""
    plan = work.plan
    for path in [path for path in work.dataset.rglob(".*") if is_temporary(path)]:
        path.unlink()  # it was being written when somebody was killed
    refuse_changed(file for file in plan.files if not is_remote(file.path))
    read, encoded = work.counts(reading.NAME), work.counts(encoding.NAME)
    cleaned = {**reading.cleaned(read), **encoding.cleaned(encoded)}
    trained_on = work.counts(encoding.TOKENIZER)
    write_report(
        work.dataset,
        num_read=read["read"],
        num_kept=encoded["kept"],
        cleaned=cleaned,
        trained_on=trained_on,
        warnings=list(find_warnings(plan.config, encoded, trained_on)),
    )
    shards.write_indexes(work, plan.built_from)
    put_in_place(work.dataset, plan.out, claims=claims if replace else None)
    work.remove()


def _goes_on(work: Work) -> str:
    return f"what is done is kept in {work.folder}: run the same command again to go on, or remove it"
