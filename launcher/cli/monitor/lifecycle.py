"""Stop and cancel runs; checks of a run's last job for `xlpretrain resume`. Torch-free."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from pathlib import Path

from launcher.slurm import client as slurm
from launcher.slurm.client import JobState
from launcher.slurm.records import Job, SlurmFolder
from xlpretrain.errors import LaunchError
from xlpretrain.run_dir import outcome
from xlpretrain.run_dir.layout import RunDir

CANCEL_WAIT_S = 30.0
_POLL_S = 0.5


def stop(run: RunDir) -> str:
    """Request that a run saves, exits and stays stopped. Returns a message for the user. Raises `LaunchError`."""
    _wish_to_stop(run)
    job = SlurmFolder.of(run).read_job()
    state = slurm.state_here(job.job_id, job.cluster) if job else None
    if job and state and state.is_waiting:
        return (
            f"{run.path}: job {job.job_id} is still queued ({state}) and will exit as soon as it starts;"
            f" `xlpretrain cancel {quoted(run)}` removes it from the queue"
        )
    status = run.read_status()
    if (state and state.is_running) or (status is not None and status.state == "running"):
        return f"{run.path}: will save and exit after its current step"
    return f"{run.path}: not running; it stays stopped until resumed"


def cancel(run: RunDir, *, wait_s: float = CANCEL_WAIT_S) -> str:
    """Cancel a run's job, running or queued, and wait until it is gone. Returns a message for the user.

    Raises `LaunchError` if there is no job to cancel.
    """
    job, state = _job_to_cancel(run)
    # Without the STOP file, a job that receives SIGTERM would save and requeue itself.
    _wish_to_stop(run)
    slurm.ask("scancel", job.job_id)
    deadline = time.monotonic() + wait_s
    while True:
        now = slurm.state_of(job.job_id)
        if now is None or now.is_over:
            break
        if time.monotonic() > deadline:
            return (
                f"{run.path}: job {job.job_id} was cancelled and is still {now}: it saves until Slurm kills it;"
                f" `xlpretrain status {quoted(run)}` shows when it is gone"
            )
        time.sleep(_POLL_S)
    done = "removed from the queue" if state.is_waiting else "cancelled"
    return f"{run.path}: job {job.job_id} is {done}; {outcome.how_to_resume(run)}"


def refuse_if_queued(run: RunDir) -> None:
    """Raise `LaunchError` if a run's job is queued or running, as far as this machine can see."""
    job = SlurmFolder.of(run).read_job()
    state = slurm.state_here(job.job_id, job.cluster) if job else None
    if job and state and not state.is_over:
        doing = "is queued" if state.is_waiting else "is running"
        raise LaunchError(
            f"{run.path}: job {job.job_id} {doing} ({state}), nothing to resume; `xlpretrain status"
            f" {quoted(run)}` shows it, `xlpretrain cancel {quoted(run)}` cancels it"
        )


def was_submitted(run: RunDir) -> bool:
    """True if a run was submitted to Slurm and can be submitted again."""
    records = SlurmFolder.of(run)
    return records.job.is_file() and records.cluster.is_file()


def newest_config(run: RunDir) -> Path:
    """The newest config of a run: its last attempt's, or that of a later submission. Raises `LaunchError`."""
    newest = SlurmFolder.of(run).newest_config()
    if newest is None:
        raise LaunchError(f"{run.path}: config.yaml is missing; start the run again from its original config")
    return newest


def _job_to_cancel(run: RunDir) -> tuple[Job, JobState]:
    job = SlurmFolder.of(run).read_job()
    if job is None:
        raise LaunchError(
            f"{run.path}: was never submitted to Slurm, no job to cancel;"
            f" `xlpretrain stop {quoted(run)}` stops a local run"
        )
    here = ""
    with suppress(LaunchError):  # no scontrol
        here = slurm.cluster_name()
    if here and job.cluster and here != job.cluster:
        raise LaunchError(
            f"{run.path}: job {job.job_id} belongs to cluster {job.cluster}, but this machine is part of {here};"
            f" cancel it from a node of {job.cluster}"
        )
    states = slurm.states_of([job.job_id])
    if states is None:
        raise LaunchError(
            f"{run.path}: no answer from Slurm on this machine (squeue, scontrol, sacct), so job {job.job_id} cannot"
            " be cancelled here; try a login node of the cluster"
        )
    state = states.get(job.job_id)
    if state is None or state.is_over:
        how = f" ({state})" if state else ""
        raise LaunchError(f"{run.path}: job {job.job_id} has already ended{how}, nothing to cancel")
    return job, state


def _wish_to_stop(run: RunDir) -> None:
    try:
        run.stop_file.touch()
    except OSError as error:
        raise LaunchError(f"{run.stop_file}: cannot be created: {error.strerror}") from None


def quoted(run: RunDir) -> str:
    """The path of a run folder, quoted for the shell commands in messages."""
    return shlex.quote(str(run.path))
