"""Requeue a job, excluding nodes that failed the health check. Torch-free."""

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
"""Submits a run again and returns the new job id. Raises `LaunchError`."""


def can_requeue(job: Allocation) -> bool:
    """True if this attempt may requeue its job: Slurm has neither requeued nor cancelled it yet."""
    known = slurm.state_of(job.job_id)
    return known is None or known.state == "RUNNING"


def requeue(run: RunDir, job: Allocation, profile: ClusterConfig, end: AttemptEnd, resubmit: Resubmit) -> str | None:
    """Requeue the job or, if scontrol fails, submit the run again. Returns the reason if neither works.

    end: recorded end of this attempt.
    """
    # Slurm sends SIGTERM once the requeue is accepted; the commands below must survive it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        slurm.ask("scontrol", "requeue", job.job_id)
    except LaunchError as error:
        print(f"cannot requeue the job: {error}", flush=True)
        return _submit_anew(run, job, profile, end, resubmit)
    broken = SlurmFolder.of(run).read_excluded()
    if broken:
        nodes = ",".join(filter(None, [profile.sbatch.get("exclude", ""), *broken]))
        try:  # only possible for a queued job, which it is from now on
            slurm.ask("scontrol", "update", f"JobId={job.job_id}", f"ExcNodeList={nodes}")
        except LaunchError as error:
            print(f"cannot exclude {nodes} from the next attempt: {error}", flush=True)
    return None


def _submit_anew(
    run: RunDir, job: Allocation, profile: ClusterConfig, end: AttemptEnd, resubmit: Resubmit
) -> str | None:
    """Submit the run as another job from inside this one. Returns the reason if that fails."""
    advice = f"`xlpretrain resume {run.path}` on a login node resumes it"
    if shutil.which("sbatch") is None:
        return f"neither scontrol nor sbatch works here; {advice}"
    records = SlurmFolder.of(run)
    if records.is_superseded(job.job_id, job.restart):
        return outcome.TAKEN_OVER
    known = records.read_job()
    records.append(replace(end, outcome="resubmitted"))  # first, since the new job may start at once
    try:
        job_id = resubmit(run, profile)
    except XLPretrainError as error:
        return f"{error}; {advice}"
    assert known is not None, "written at the start of this attempt"
    records.write_job(Job(job_id, known.cluster, time.time(), known.nodes, known.log))
    print(f"resubmitted as job {job_id}", flush=True)
    return None
