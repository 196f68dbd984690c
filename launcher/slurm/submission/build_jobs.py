"""`xlpretrain data build --cluster`: a build as Slurm jobs, one array per stage. Torch-free.

Every array waits for the one before (`--dependency=afterok`), and a last job publishes the dataset. The command only
watches; it can be interrupted, and a later call watches on or resubmits unfinished tasks.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data_pipelines.build.__main__ import FINISH, REPLACE
from data_pipelines.build.needed_packages import require_packages
from data_pipelines.build.pipeline import build_lock, print_summary, stages_of, start_build
from data_pipelines.build.up_to_date import is_up_to_date
from data_pipelines.config import DataConfig
from data_pipelines.execution.progress import ProgressReporter
from data_pipelines.execution.workers import Workers
from data_pipelines.stages.work_dir import Stage, WorkDir
from launcher.slurm import client as slurm
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.submission.job_script import Options, as_arguments, log_to, sbatch_options, site_lines
from xlpretrain.errors import DataError, LaunchError
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.tracking.printing import AnswerConsole

_POLL_S = 1.0
_ASK_EVERY_S = 10.0
_LAST_LINES = 10
_HOW_TO_RESUME = "finished tasks are kept; rerun the command to resume"


@dataclass(frozen=True)
class Array:
    """Job array of a stage, or (`FINISH`) of the end of a build."""

    stage: str
    job_id: str
    num_jobs: int

    @property
    def task_ids(self) -> list[str]:
        """Job ids of its tasks."""
        return [f"{self.job_id}_{i}" for i in range(self.num_jobs)]


def build(
    config: DataConfig, profile: ClusterConfig, *, num_jobs: int, force: bool, console: Console | None = None
) -> None:
    """Build on a cluster and wait until the build is finished. Raises `DataError` or `LaunchError`."""
    console = console or AnswerConsole()
    work = WorkDir.of(config.out)
    arrays = active_arrays(config.out)
    if not arrays and is_up_to_date(config, console, force=force):
        work.remove_unless_in_use()
        return
    if not arrays:
        require_packages(config)
    stages = ProgressReporter(console)
    with build_lock(work):
        if not arrays:
            with Workers(config.workers) as workers:
                start_build(config, work, stages, workers)
            arrays = _submit(work, config, profile, num_jobs=num_jobs, replace=force)
        console.print(f"jobs {', '.join(array.job_id for array in arrays)}; logs in {_folder(work)}", highlight=False)
        try:
            _watch(work, config, arrays, stages)
        except KeyboardInterrupt:
            console.print("\nthe jobs keep running; rerun the command to watch them")
            raise
    print_summary(config.out, stages)


def active_arrays(out: Path) -> list[Array]:
    """The queued and running jobs of a build."""
    try:
        found = [Array(**entry) for entry in json.loads((_folder(WorkDir.of(out)) / "jobs.json").read_text())]
    except (OSError, ValueError, TypeError):
        return []
    states = slurm.states_of([job for array in found for job in array.task_ids]) or {}
    return found if any(not state.is_over for state in states.values()) else []


def refuse_if_active(out: Path) -> None:
    """Raise `DataError` if Slurm jobs are building this dataset."""
    if arrays := active_arrays(out):
        raise DataError(
            f"{out}: jobs {', '.join(array.job_id for array in arrays)} are building this dataset; watch them with"
            " --cluster, or cancel them with scancel"
        )


def script(work: WorkDir, arguments: Sequence[str], profile: ClusterConfig, *, log: str) -> str:
    """The batch script of a job. log: prefix of the name of its log."""
    command = [profile.python, "-u", "-m", "data_pipelines.build", str(work.folder), *arguments]
    lines = [
        "#!/bin/bash",
        log_to(f"{shlex.quote(str(_folder(work) / log))}-$SLURM_ARRAY_TASK_ID.log"),
        *site_lines(profile),
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def _submit(work: WorkDir, config: DataConfig, profile: ClusterConfig, *, num_jobs: int, replace: bool) -> list[Array]:
    _folder(work).mkdir(exist_ok=True)
    one_node = profile.model_copy(update={"nodes": "1", "spare_nodes": 0, "tasks_per_node": 1})
    options: Options = {**sbatch_options(one_node), "output": "/dev/null"}
    del options["signal"]  # a killed task simply runs again
    arrays: list[Array] = []
    chain = [(stage.name, [stage.name, str(num_jobs)], num_jobs) for stage in stages_of(config)]
    chain = [(name, arguments, 1 if name == "tokenizer" else count) for name, arguments, count in chain]
    chain.append((FINISH, [FINISH, *([REPLACE] if replace else [])], 1))
    try:
        for name, arguments, count in chain:
            path = _folder(work) / f"{name}.sh"
            path.write_text(script(work, arguments, profile, log=name))
            after = {"dependency": f"afterok:{arrays[-1].job_id}", "kill-on-invalid-dep": "yes"} if arrays else {}
            asked: Options = {
                **options,
                **after,
                "job-name": f"build-{config.out.name}",
                "array": f"0-{count - 1}",
            }
            with slurm.clean_environment():
                said = slurm.ask("sbatch", "--parsable", *as_arguments(asked), str(path))
            arrays.append(Array(name, said.strip().partition(";")[0], count))
    except LaunchError:
        _cancel(arrays)
        raise
    atomic_write(_folder(work) / "jobs.json", json.dumps([vars(array) for array in arrays]))
    return arrays


def _watch(work: WorkDir, config: DataConfig, arrays: Sequence[Array], stages: ProgressReporter) -> None:
    """Show the progress of the jobs until the last one ends. Raises `LaunchError` if one fails."""
    by_name = {array.stage: array for array in arrays}
    for stage in stages_of(config):
        with suppress(FileNotFoundError):  # the last job removes the work folder
            _watch_stage(work, stage, by_name[stage.name], arrays, stages)
    for is_over in _looks([by_name[FINISH]]):
        if not work.plan_file.exists() and not work.folder.exists():
            return
        if is_over:
            _fail(work, by_name[FINISH], arrays)


def _watch_stage(work: WorkDir, stage: Stage, array: Array, arrays: Sequence[Array], stages: ProgressReporter) -> None:
    sizes = stage.sizes(work)
    waiting = {task for task in range(len(sizes)) if not work.is_done(stage.name, task)}
    done = (sum(sizes) - sum(sizes[task] for task in waiting)) / 1e6
    with stages.stage(stage.title, "MB", sum(sizes) / 1e6, done=done) as advance:
        for is_over in _looks([array]):
            for task in [task for task in waiting if work.is_done(stage.name, task)]:
                waiting.remove(task)
                advance(sizes[task] / 1e6)
            if not waiting or not work.plan_file.exists():
                return
            if is_over:
                _fail(work, array, arrays)


def _looks(arrays: Sequence[Array]) -> Iterator[bool]:
    """Poll whether all jobs of these arrays are over. Slurm is queried at intervals only."""
    jobs = [job for array in arrays for job in array.task_ids]
    asked, is_over = time.monotonic(), False
    while True:
        yield is_over
        time.sleep(_POLL_S)
        if time.monotonic() - asked > _ASK_EVERY_S:
            states = slurm.states_of(jobs)
            # Jobs that Slurm no longer lists are over; no answer at all means nothing.
            is_over = states is not None and all(job not in states or states[job].is_over for job in jobs)
            asked = time.monotonic()


def _fail(work: WorkDir, array: Array, arrays: Sequence[Array]) -> None:
    _cancel(arrays)
    said = ""
    for log in sorted(_folder(work).glob(f"{array.stage}-*.log")):
        lines = log.read_text(errors="replace").splitlines()
        if errors := [line for line in lines if line.startswith("error: ")]:
            raise LaunchError(f"{errors[-1].removeprefix('error: ')} (in {log}); {_HOW_TO_RESUME}")
        said = "\n".join(lines[-_LAST_LINES:])
    states = slurm.states_of(array.task_ids) or {}
    ended = ", ".join(sorted({str(state) for state in states.values()})) or "unknown"
    raise LaunchError(
        f"job {array.job_id} ended ({ended}) with unfinished tasks; logs in {_folder(work)}; {_HOW_TO_RESUME}"
        + (f"\n{said}" if said else "")
    )


def _cancel(arrays: Sequence[Array]) -> None:
    with suppress(LaunchError):
        if arrays:
            slurm.ask("scancel", *(array.job_id for array in arrays))


def _folder(work: WorkDir) -> Path:
    return work.folder / "slurm"
