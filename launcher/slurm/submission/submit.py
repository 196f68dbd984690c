"""Submit runs to Slurm: check everything first, copy what the run needs, and submit the job."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.slurm import client as slurm
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.records import Job, SlurmFolder
from launcher.slurm.submission import code_snapshot, executor
from launcher.slurm.submission.job_entry import run_job
from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.errors import LaunchError
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.run_dir import lease
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.train.setup import resolve_run

_ITS_TURN = {"Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Prolog"}


def check(config: RunConfig, profile: ClusterConfig, *, allow_recipe_change: bool) -> RunConfig:
    """The resolved config of the ranks, with absolute paths. Raises `XLPretrainError` if the run would fail."""
    config = config.model_copy(update={"runs_dir": config.runs_dir.absolute()})
    for num_nodes in {profile.min_nodes, profile.max_nodes}:
        resolved, _, _ = resolve_run(
            config, world_size=num_nodes * profile.num_tasks, allow_recipe_change=allow_recipe_change
        )
    return resolved


def refuse_if_active(folder: RunDir) -> None:
    """Raise `LaunchError` if a run is queued or running, as a job or on a machine."""
    if job_id := active_job(folder):
        raise LaunchError(
            f"{folder.path}: already submitted as job {job_id}; `xlpretrain status {folder.path}` shows it,"
            f" `xlpretrain cancel {folder.path}` cancels it"
        )
    if SlurmFolder.of(folder).read_job() is None:
        lease.check_available(folder.lease, launch_id="", take_over=False)


def active_job(folder: RunDir) -> str | None:
    """Id of a run's job if it is queued or running, else None."""
    job = SlurmFolder.of(folder).read_job()
    state = slurm.state_here(job.job_id, job.cluster) if job else None
    return job.job_id if job and state and not state.is_over else None


def submit_runs(settings: Sequence[RunConfig], profile: ClusterConfig, *, name: str) -> list[Job]:
    """Write the files of checked runs and submit them. Raises `LaunchError`, after removing new run folders."""
    folders = [config.folder for config in settings]
    new: list[Path] = []
    cluster = ""
    try:
        left_out: list[str] = []
        for folder in folders:
            with suppress(FileExistsError):
                folder.path.mkdir(parents=True)
                new.append(folder.path)  # removed again if the submission fails
        for config in settings:
            left_out = write_files(config, profile)
        with suppress(LaunchError):
            cluster = slurm.cluster_name()
        ids = executor.submit(folders, profile, name=name, call=run_job)
    except BaseException:
        for path in new:
            shutil.rmtree(path, ignore_errors=True)
        raise
    jobs = []
    for folder, job_id in zip(folders, ids, strict=True):
        log = str(folder.path / executor.LOG)
        jobs.append(Job(job_id=job_id, cluster=cluster, submitted_at=time.time(), nodes=profile.nodes, log=log))
        SlurmFolder.of(folder).write_job(jobs[-1])
    for line in dict.fromkeys(line for config in settings for line in config.alerts.warnings()):
        print(f"warning: {line}; a job takes its environment from here", file=sys.stderr)
    if left_out:
        print(f"not copied with the code: {', '.join(left_out)}", file=sys.stderr)
    for folder, job in zip(folders, jobs, strict=True):
        _print_job(folder, job)
    if hindrance := _hindrance(ids[0]):
        print(
            f"warning: job {ids[0]} is pending with reason {hindrance} and will not start until that changes; if it is"
            " a limit, cancel the job and request less",
            file=sys.stderr,
        )
    return jobs


def write_files(config: RunConfig, profile: ClusterConfig) -> list[str]:
    """Write the files that a job needs to the run folder. Returns files left out of the code. Raises `LaunchError`."""
    folder = config.folder
    records = SlurmFolder.of(folder)
    try:
        records.path.mkdir(parents=True, exist_ok=True)
        folder.logs.mkdir(exist_ok=True)
        records.write_config(schema.dump(config))
        atomic_write(records.cluster, schema.dump(profile))
    except OSError as error:
        raise LaunchError(f"{error.filename}: the run folder cannot be created: {error.strerror}") from None
    return code_snapshot.copy_code(folder.path / "code", record=records.code)


def _hindrance(job_id: str) -> str:
    """Reason why a new job is pending, unless it only waits for its turn. Slurm reports it after a moment."""
    for _ in range(10):
        state = slurm.state_of(job_id)
        if state is None or not state.is_waiting or state.reason in _ITS_TURN:
            return ""
        if state.reason:
            return state.reason
        time.sleep(0.2)
    return ""


def _print_job(folder: RunDir, job: Job) -> None:
    run = shlex.quote(str(folder.path))
    print(f"job {job.job_id}: {folder.path} on {job.nodes} node{'' if job.nodes == '1' else 's'}")
    print(f"  log    {job.log}")
    print(f"  watch  xlpretrain status {run}    xlpretrain logs {run} -f")
    print(f"  end    xlpretrain stop {run}    xlpretrain cancel {run}")
