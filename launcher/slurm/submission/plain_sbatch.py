"""Entry point of slurm/pretrain.sbatch: a run in a job that `xlpretrain submit` did not submit.

    python -m launcher.slurm.submission.plain_sbatch CONFIG key=value ...

The first attempt of a job writes the same files as `submit`, and a link `slurm-<job>.run` to the run folder in the
submission folder: requeued attempts follow it, since CONFIG may have changed meanwhile.
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

# Keys of a site profile that a job's environment provides.
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
    """Start or resume the run. Returns the exit code of a job that ends before its attempt; else exits with it."""
    try:
        allocation = Allocation.current()
        where = Path(os.environ.get("SLURM_SUBMIT_DIR", ".")) / f"slurm-{allocation.job_id}.run"
        if allocation.restart == 0 or not where.is_symlink():
            if where.exists() and not where.is_symlink():
                raise LaunchError(f"{where}: expected a link to the run folder, got something else; move it away")
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
    """The site profile that matches a job's environment. Raises `ConfigError`."""
    given = {key: environment[name] for name, key in _KEYS.items() if environment.get(name, "(null)") != "(null)"}
    data = {key: int(value) if key in _NUMBERS else value for key, value in given.items()}
    # The job got all requested nodes; if some fail the health check, it continues with fewer.
    nodes = "1" if len(allocation.nodes) == 1 else f"1-{len(allocation.nodes)}"
    return schema.validate(ClusterConfig, {"nodes": nodes, **data}, "the job's environment")


def _check(arguments: Sequence[str], allocation: Allocation) -> tuple[RunConfig, ClusterConfig]:
    """The resolved config of the job. Raises `XLPretrainError` if it cannot run."""
    if not arguments:
        raise ConfigError("missing argument CONFIG; usage: sbatch slurm/pretrain.sbatch CONFIG key=value ...")
    profile = profile_from_job(allocation, os.environ)
    config = run_config.load(Path(arguments[0]), arguments[1:])
    config = submit.check(config, profile, allow_recipe_change=False)
    if (before := submit.active_job(config.folder)) and before != allocation.job_id:
        raise LaunchError(f"{config.folder.path}: already submitted as job {before}")
    return config, profile


def _write(config: RunConfig, profile: ClusterConfig) -> RunDir:
    """Write the files that the run needs."""
    for line in submit.write_files(config, profile):
        print(f"not copied with the code: {line}")
    return config.folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
