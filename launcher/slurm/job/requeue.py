"""Puts a job back into the queue, away from nodes that are not sound. Torch-free."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from launcher.slurm import client as slurm
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.records import AttemptEnd, Job, SlurmFolder
from xlpretrain.errors import LaunchError, XLPretrainError
from xlpretrain.run_dir import outcome
from xlpretrain.run_dir.layout import RunDir

Resubmit = Callable[[RunDir, ClusterConfig], str]
"""Submits a run again, and returns the id of its job. Raises `LaunchError`."""


def can_requeue(job: Allocation) -> bool:
    """True if this attempt may requeue its job: neither Slurm did so already, nor was it cancelled."""
    known = slurm.state_of(job.job_id)
    return known is None or known.state == "RUNNING"


def requeue(run: RunDir, job: Allocation, profile: ClusterConfig, end: AttemptEnd, resubmit: Resubmit) -> str | None:
    """Put the job back, or, where that cannot be asked for here, submit the run anew. Returns why neither went.

    end: of this start, as it was written down.
    """
    # From the request on, Slurm ends what this job runs; the commands here are to outlive its first signal.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        slurm.ask("scontrol", "requeue", job.job_id)
    except LaunchError as error:
        print(f"it cannot be put back into the queue: {error}", flush=True)
        return _submit_anew(run, job, profile, end, resubmit)
    broken = SlurmFolder.of(run).read_excluded()
    if broken:
        nodes = ",".join(filter(None, [profile.sbatch.get("exclude", ""), *broken]))
        try:  # only a job that waits can be told so, and it does from now on
            slurm.ask("scontrol", "update", f"JobId={job.job_id}", f"ExcNodeList={nodes}")
        except LaunchError as error:
            print(f"the next start may meet {nodes} again: {error}", flush=True)
    return None


def _submit_anew(
    run: RunDir, job: Allocation, profile: ClusterConfig, end: AttemptEnd, resubmit: Resubmit
) -> str | None:
    """Another job for the run, from inside of this one. Returns why there is none."""
    advice = f"`xlpretrain resume {run.path}` on a login node goes on"
    if shutil.which("sbatch") is None:
        return f"neither scontrol nor sbatch can be used here; {advice}"
    records = SlurmFolder.of(run)
    if records.is_superseded(job.job_id, job.restart):
        return outcome.TAKEN_OVER
    known = records.read_job()
    records.append(replace(end, outcome="resubmitted"))  # before: the other job may start at once
    try:
        job_id = resubmit(run, profile)
    except XLPretrainError as error:
        return f"{error}; {advice}"
    assert known is not None, "this start has written it"
    records.write_job(Job(job_id, known.cluster, time.time(), known.nodes, known.log))
    print(f"submitted anew as job {job_id}", flush=True)
    return None
