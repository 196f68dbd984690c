"""Entry point of a submitted job, and resubmission from inside a job. Torch-free."""

from __future__ import annotations

from typing import NoReturn

from launcher.slurm.job import attempt
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.submission import executor
from xlpretrain.run_dir.layout import RunDir


def run_job(path: str) -> NoReturn:
    """Make one attempt of the run in a folder and exit with its code: 0, 1, 2, 75 or 76."""
    attempt.run(path, resubmit=resubmit)


def resubmit(run: RunDir, profile: ClusterConfig) -> str:
    """Submit a run again from inside its job. Returns the new job id. Raises `LaunchError`."""
    (job_id,) = executor.submit([run], profile, name=run.path.name, call=run_job)
    return job_id
