"""The command `xlpretrain suite`: many tasks, checkpoints and seeds, and a table of their scores."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.pool import Command, Event, Pool, Slot, describe_failure, divide_machine, log_sizes, visible_gpus
from launcher.suite.checks import check_jobs, missing_files, prepare_files
from launcher.suite.definition import SuiteConfig, load_suite
from launcher.suite.jobs import Job, list_jobs
from launcher.suite.record import Record
from launcher.suite.results.report import print_table, write_report
from launcher.suite.results.scores import collect
from launcher.suite.subjects import Subject, find_subjects
from launcher.suite.worker import Request
from xlpretrain.errors import FINISHED, STOPPED_EARLY, ConfigError, LaunchError
from xlpretrain.run_dir import lease
from xlpretrain.schema import format_problems
from xlpretrain.tracking.console import format_duration, outlive_console

FAILED = 1
"""Exit code if a job has failed."""


@dataclass(frozen=True)
class SuiteOptions:
    """Options of the command.

    num_jobs: jobs at a time (None: one for each group of `num_processes` GPUs; without GPUs, one).
    num_processes: ranks of each fine-tune (None: one; without GPUs and one job at a time, as `finetune` does).
    max_restarts: maximum number of restarts of a fine-tune after a crash.
    """

    num_jobs: int | None = None
    num_processes: int | None = None
    max_restarts: int = 0


def run_suite(
    runs: Sequence[str],
    suite: str,
    *,
    data: Path | None,
    to: Path | None,
    only: Sequence[str],
    overrides: Sequence[str],
    options: SuiteOptions,
) -> int:
    """Run what is not finished yet, print the table, and write it to the folder. Returns the exit code.

    runs: see `find_subjects`. suite, data, only, overrides: see `load_suite`. to: folder of the results (default:
    suites/NAME). Raises `XLPretrainError`, in one report, before anything is written.
    """
    outlive_console()
    config = load_suite(suite, data=data, only=only, overrides=overrides)
    folder = (to or Path("suites") / Path(suite).stem).absolute()
    given, problems = find_subjects(runs)
    problems += missing_files(config)
    before = Record.read(folder)
    record = before
    if not problems:
        record = before.extended(config.tasks, given)
        jobs = list(list_jobs(config, given, folder))
        problems += before.problems(record, list(list_jobs(config, list(record.subjects.values()), folder)))
        problems += check_jobs(jobs) if not problems else []
    if problems:
        raise ConfigError(format_problems(suite, problems))
    slots = slots_of(options)
    with _lease(folder):
        record.write(folder)
        for task in config.tasks:
            for note in prepare_files(task, folder):
                print(note)
        ended, stopped = _run(jobs, config, options, slots)
    return _report(folder, config, record.subjects, jobs, ended, stopped=stopped)


def slots_of(options: SuiteOptions) -> list[Slot]:
    """The devices of each job at a time. Raises `ConfigError` if there are too few GPUs."""
    each = options.num_processes or 1
    return divide_machine(options.num_jobs or max(len(visible_gpus()) // each, 1), num_processes=each)


def _run(
    jobs: Sequence[Job], config: SuiteConfig, options: SuiteOptions, slots: Sequence[Slot]
) -> tuple[dict[str, Event], int]:
    """Run all unfinished jobs. Returns how each ended, and the signal that stopped them; 0: none."""
    left = [job for job in jobs if job.read() is None]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} jobs are finished already", flush=True)
    by_name = {job.label: job for job in left}
    num_processes = options.num_processes or (None if list(slots) == [Slot()] else 1)
    numbers = {name: f"[{number}/{len(left)}]" for number, name in enumerate(by_name, 1)}

    def on_event(event: Event, command: Command, code: int | None, seconds: float) -> None:
        job, since = by_name[command.name], sizes[command.name]
        print(
            f"{numbers[command.name]} {command.name}: {_event_text(event, job, code, seconds, since=since)}", flush=True
        )

    commands = [
        Command(job.label, [sys.executable, "-m", "launcher.suite.worker", request.to_json()], job.log)
        for job in left
        for request in [
            Request.of(
                job,
                keep_checkpoints=config.keep_checkpoints,
                num_processes=num_processes,
                max_restarts=options.max_restarts,
            )
        ]
    ]
    sizes, pool = log_sizes(commands), Pool(slots, on_event)
    return pool.run(commands), pool.stopped_by


def _event_text(event: Event, job: Job, code: int | None, seconds: float, *, since: int) -> str:
    """Text for an event of a job. since: size of its log before it started."""
    if event == "started":
        return "started"
    took, found = f"after {format_duration(seconds)}", job.read()
    if event == "stopped" and found is None:
        return f"stopped {took}; rerun the command to continue it"
    if event == "failed" and found is None:
        return f"failed {took}, {describe_failure(code, job.log, since=since)} ({job.log})"
    metrics = (found or {}).get("", {})
    shown = ", ".join(
        f"{name} {'undefined' if (value := metrics.get(name)) is None else format(job.task.scale * value, '.2f')}"
        for name in job.task.reported
    )
    return f"{shown}, {took}"


def _report(
    folder: Path,
    config: SuiteConfig,
    subjects: Mapping[str, Subject],
    jobs: Sequence[Job],
    ended: Mapping[str, Event],
    *,
    stopped: int,
) -> int:
    """Print and write the table of all checkpoints of the folder. Returns the exit code."""
    failed = [job.label for job in jobs if ended.get(job.label) == "failed" and job.read() is None]
    every = list(list_jobs(config, list(subjects.values()), folder))
    scores = collect(config, every, failed)
    print()
    print_table(scores)
    print()
    for path in write_report(folder, scores, subjects):
        print(f"wrote {path}")
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs failed; rerun the command to try them again", file=sys.stderr)
    num_left = sum(job.read() is None for job in jobs) - len(failed)
    if stopped and num_left:
        name = signal.Signals(stopped).name
        left = "1 job is" if num_left == 1 else f"{num_left} jobs are"
        print(f"stopped by {name}: {left} left; rerun the command to continue", file=sys.stderr)
        return STOPPED_EARLY
    return FAILED if failed else FINISHED


@contextmanager
def _lease(folder: Path) -> Iterator[None]:
    """Own the folder of a suite: one process at a time may run it. Raises `LaunchError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mine = lease.acquire(folder / "lease", launch_id="", take_over=False)
    except LaunchError:
        raise LaunchError(
            f"{folder}: another process runs a suite in it; wait for it, or choose another folder (--to). If it was"
            f" killed on another machine, wait for {lease.STALE_S:.0f} s"
        ) from None
    mine.start_heartbeat()
    try:
        yield
    finally:
        mine.close()
