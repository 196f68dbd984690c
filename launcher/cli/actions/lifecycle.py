"""Stop and cancel runs, and what `xlpretrain resume` has to know of a run's last job. Torch-free."""

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
    """Leave the wish that a run saves and ends, and stays so. Returns what becomes of it. Raises `LaunchError`."""
    _wish_to_stop(run)
    job = SlurmFolder.of(run).read_job()
    state = slurm.state_here(job.job_id, job.cluster) if job else None
    if job and state and state.is_waiting:
        return (
            f"{run.path}: its job {job.job_id} waits in the queue ({state}); it will end as soon as it starts."
            f" `xlpretrain cancel {quoted(run)}` removes it from the queue"
        )
    status = run.read_status()
    if (state and state.is_running) or (status is not None and status.state == "running"):
        return f"{run.path}: it will save and end at its next step"
    return f"{run.path}: not running; it will not start again until resumed"


def cancel(run: RunDir, *, wait_s: float = CANCEL_WAIT_S) -> str:
    """End a run's job, or remove it from the queue, and wait until it is gone. Returns what remains of the run.

    Raises `LaunchError` if there is no job to end.
    """
    job, state = _job_to_cancel(run)
    # A job that is told to end would save and put itself back into the queue, were it not the user's wish.
    _wish_to_stop(run)
    slurm.ask("scancel", job.job_id)
    deadline = time.monotonic() + wait_s
    while True:
        now = slurm.state_of(job.job_id)
        if now is None or now.is_over:
            break
        if time.monotonic() > deadline:
            return (
                f"{run.path}: job {job.job_id} was cancelled and is still {now}: it saves, until Slurm kills it;"
                f" `xlpretrain status {quoted(run)}` shows when it is gone"
            )
        time.sleep(_POLL_S)
    step = outcome.newest_step(run)
    left = f"a checkpoint of step {step} is there" if step else "no checkpoint was made yet"
    done = "removed from the queue" if state.is_waiting else "cancelled"
    return f"{run.path}: job {job.job_id} is {done}; {left}, `xlpretrain resume {quoted(run)}` goes on"


def refuse_if_queued(run: RunDir) -> None:
    """Raise `LaunchError` if a run's job waits or runs, as far as can be told here."""
    job = SlurmFolder.of(run).read_job()
    state = slurm.state_here(job.job_id, job.cluster) if job else None
    if job and state and not state.is_over:
        doing = "waits in the queue" if state.is_waiting else "runs"
        raise LaunchError(
            f"{run.path}: its job {job.job_id} {doing} ({state}): nothing to resume; `xlpretrain status"
            f" {quoted(run)}` shows it, `xlpretrain cancel {quoted(run)}` ends it"
        )


def was_submitted(run: RunDir) -> bool:
    """True if a run's last attempt was submitted to Slurm, and can be submitted again."""
    records = SlurmFolder.of(run)
    return records.job.is_file() and records.cluster.is_file()


def newest_config(run: RunDir) -> Path:
    """The newest config of a run: of its last attempt, or of a submission since then. Raises `LaunchError`."""
    newest = SlurmFolder.of(run).newest_config()
    if newest is None:
        raise LaunchError(f"{run.path}: has no config.yaml any more; begin it anew with its config")
    return newest


def _job_to_cancel(run: RunDir) -> tuple[Job, JobState]:
    job = SlurmFolder.of(run).read_job()
    if job is None:
        raise LaunchError(
            f"{run.path}: was never submitted to Slurm, so there is no job to cancel;"
            f" `xlpretrain stop {quoted(run)}` ends a run on a machine"
        )
    here = ""
    with suppress(LaunchError):  # no scontrol
        here = slurm.cluster_name()
    if here and job.cluster and here != job.cluster:
        raise LaunchError(
            f"{run.path}: its job {job.job_id} is one of cluster {job.cluster}, and this machine belongs to {here};"
            f" cancel it from a machine of {job.cluster}"
        )
    states = slurm.states_of([job.job_id])
    if states is None:
        raise LaunchError(
            f"{run.path}: Slurm does not answer on this machine (squeue, scontrol, sacct), so job {job.job_id} cannot"
            " be cancelled from here; try a login node of the cluster"
        )
    state = states.get(job.job_id)
    if state is None or state.is_over:
        how = f" ({state})" if state else ""
        raise LaunchError(f"{run.path}: its job {job.job_id} has ended{how}: nothing to cancel")
    return job, state


def _wish_to_stop(run: RunDir) -> None:
    try:
        run.stop_file.touch()
    except OSError as error:
        raise LaunchError(f"{run.stop_file}: cannot be made: {error.strerror}") from None


def quoted(run: RunDir) -> str:
    """A run folder as a word of shell, for commands in messages."""
    return shlex.quote(str(run.path))
