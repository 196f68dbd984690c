"""Hands runs to Slurm, through submitit: one job, or one array of them. Torch-free.

Paths reach the job script quoted for the shell, and no option of sbatch, whose quotes differ: sbatch is called in the
folder that its log lies in. What is left to refuse are the patterns of submitit.
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.slurm import client as slurm
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.records import SlurmFolder
from launcher.slurm.submission.job_script import log_to, sbatch_options, site_lines
from xlpretrain.errors import ConfigError, LaunchError
from xlpretrain.extras import optional
from xlpretrain.run_dir.layout import RunDir

if TYPE_CHECKING:
    from submitit import SlurmExecutor

LOG = "logs/job.log"
"""The log of a job's script and supervisor, in the run folder."""
_PATTERNS = ("%j", "%t", "%A", "%a")


def script(runs: Sequence[RunDir], profile: ClusterConfig, *, name: str) -> str:
    """The batch script for these runs, as `submit` would hand it to sbatch.

    Reads private names of submitit, which has no public way to a script without a submission
    (docs/decisions/0036-private-names-of-submitit.md).
    """
    executor = _executor(runs, profile, name=name, folder=_home(runs))
    if len(runs) > 1:
        executor.parameters["map_count"] = len(runs)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit(runs: Sequence[RunDir], profile: ClusterConfig, *, name: str, call: Callable[[str], object]) -> list[str]:
    """Submit one job for each run, which calls `call` with its folder. Returns the job ids.

    Raises `LaunchError` with Slurm's own words.
    """
    home = _home(runs)
    executor = _executor(runs, profile, name=name, folder=home)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    home.mkdir(parents=True, exist_ok=True)
    if len(runs) > 1:
        (home / "runs").mkdir()
        for index, run in enumerate(runs):
            (home / "runs" / str(index)).symlink_to(run.path)
    try:
        with slurm.clean_environment(), chdir(home if len(runs) > 1 else runs[0].path):
            if len(runs) == 1:
                return [executor.submit(call, str(runs[0].path)).job_id]
            return [made.job_id for made in executor.map_array(call, [str(run.path) for run in runs])]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        if len(runs) > 1:
            shutil.rmtree(home, ignore_errors=True)
        raise LaunchError(f"Slurm did not take the job: {str(error).strip()}") from None


def _home(runs: Sequence[RunDir]) -> Path:
    """The folder of submitit's files. A sweep has a folder of its own for them."""
    if len(runs) == 1:
        return SlurmFolder.of(runs[0]).submitit
    return runs[0].path.parent / ".sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _executor(runs: Sequence[RunDir], profile: ClusterConfig, *, name: str, folder: Path) -> SlurmExecutor:
    with optional("submitit", "a Slurm job"):
        from submitit import SlurmExecutor

    for pattern in _PATTERNS:
        if pattern in str(folder):
            raise ConfigError(
                f"runs_dir: {folder} holds {pattern}, which submitit reads as a pattern; rename the folder"
            )
    try:
        executor = SlurmExecutor(folder, python=shlex.quote(profile.python))
    except RuntimeError:
        raise LaunchError("srun: there is no such command here; submit from a login node of the cluster") from None
    array = len(runs) > 1
    base = shlex.quote(str(folder / "runs")) + '/"$SLURM_ARRAY_TASK_ID"' if array else shlex.quote(str(runs[0].path))
    excluded = dict.fromkeys(node for run in runs for node in SlurmFolder.of(run).read_excluded())
    asked = sbatch_options(profile, exclude=list(excluded))
    # Slurm puts the folder before this, and then looks for patterns and escapes in all of it.
    odd = any(char in str(path) for path in (folder, *(run.path for run in runs)) for char in "%\\")
    asked["output"] = "/dev/null" if odd else f"runs/%a/{LOG}" if array else LOG
    executor.update_parameters(
        job_name=name,
        time=None,  # or submitit would ask for 5 minutes
        wckey=None,
        use_srun=False,
        stderr_to_stdout=True,
        array_parallelism=profile.array_parallelism,
        setup=[*([log_to(f"{base}/{LOG}")] if odd else []), *_setup(profile, f"{base}/code")],
        additional_parameters=asked,
    )
    return executor


def _setup(profile: ClusterConfig, code: str) -> list[str]:
    """The commands that a script runs before it starts the supervisor. code: the run's copy of the code, quoted for the
    shell."""
    return [
        "trap : TERM USR1 USR2  # bash would end at once; the supervisor decides",
        *site_lines(profile),
        f"cd -- {code}  # from here, `python -m` runs the run's copy of the code",
        "unset PYTHONSAFEPATH",
        'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"',
    ]
