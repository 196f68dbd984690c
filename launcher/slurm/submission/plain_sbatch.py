"""A run in a job that was not submitted by `xlpretrain submit`: what slurm/pretrain.sbatch runs.

    python -m launcher.slurm.submission.plain_sbatch CONFIG key=value ...

The first start of a job writes down what the run is, as `submit` would, and leaves `slurm-<job>.run` where it was
submitted, which points to the run folder: the job may be put back into the queue, and CONFIG may change meanwhile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.finished import print_if_finished
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.records import SlurmFolder
from launcher.slurm.submission import submit
from launcher.slurm.submission.job_entry import run_job
from xlpretrain import schema
from xlpretrain.config import run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.errors import FINISHED, USER_ERROR, ConfigError, LaunchError, XLPretrainError
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.run_dir.layout import RunDir

# What of a job's environment is a key of a site profile.
_KEYS = {
    "SLURM_JOB_PARTITION": "partition",
    "SLURM_JOB_ACCOUNT": "account",
    "SLURM_JOB_QOS": "qos",
    "SLURM_NTASKS_PER_NODE": "tasks_per_node",
    "SLURM_CPUS_PER_TASK": "cpus_per_task",
    "SLURM_GPUS_ON_NODE": "gpus_per_node",
}
_NUMBERS = ("tasks_per_node", "cpus_per_task", "gpus_per_node")


def main(arguments: Sequence[str]) -> int:
    """Begin the run, or go on with it. Returns the job's exit code, if it does not leave with it."""
    try:
        allocation = Allocation.current()
        where = Path(os.environ.get("SLURM_SUBMIT_DIR", ".")) / f"slurm-{allocation.job_id}.run"
        if allocation.restart == 0 or not where.is_symlink():
            if where.exists() and not where.is_symlink():
                raise LaunchError(f"{where}: a link to the run folder belongs there; move it away")
            config, profile = _check(arguments, allocation)
            if print_if_finished(config):
                return FINISHED
            folder = _write(config, profile)
            where.unlink(missing_ok=True)
            where.symlink_to(folder.path)
    except XLPretrainError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    folder = RunDir(where.readlink())
    atomic_write(SlurmFolder.of(folder).cluster, schema.dump(profile_from_job(allocation, os.environ)))
    os.chdir(folder.path / "code")  # so that the ranks run the copy
    run_job(str(folder.path))


def profile_from_job(allocation: Allocation, environment: Mapping[str, str]) -> ClusterConfig:
    """The site profile that a job would have been submitted with. Raises `ConfigError`."""
    given = {key: environment[name] for name, key in _KEYS.items() if environment.get(name, "(null)") != "(null)"}
    data = {key: int(value) if key in _NUMBERS else value for key, value in given.items()}
    # Slurm has given as many as it was asked for: a node that is not sound is a reason to go on with fewer.
    nodes = "1" if len(allocation.nodes) == 1 else f"1-{len(allocation.nodes)}"
    return schema.validate(ClusterConfig, {"nodes": nodes, **data}, "the job's environment")


def _check(arguments: Sequence[str], allocation: Allocation) -> tuple[RunConfig, ClusterConfig]:
    """The resolved config of the job. Raises `XLPretrainError` if it cannot run."""
    if not arguments:
        raise ConfigError("name a CONFIG: sbatch slurm/pretrain.sbatch CONFIG key=value ...")
    profile = profile_from_job(allocation, os.environ)
    config = run_config.load(Path(arguments[0]), arguments[1:])
    config = submit.check(config, profile, allow_recipe_change=False)
    if (before := submit.active_job(config.folder)) and before != allocation.job_id:
        raise LaunchError(f"{config.folder.path}: is job {before} already")
    return config, profile


def _write(config: RunConfig, profile: ClusterConfig) -> RunDir:
    """Write down what the run is."""
    for line in submit.write_files(config, profile):
        print(f"left out of the copy of the code: {line}")
    return config.folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
