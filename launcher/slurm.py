"""What Slurm's own commands are asked here. Torch-free. Plain formats only: what --json prints changes by release."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from xlpretrain.errors import LaunchError

_INHERITED = re.compile(
    r"(SLURM|SLURMD|SRUN|SUBMITIT|TORCHELASTIC|XLPRETRAIN)_.*|(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
)
_KEPT = {"SLURM_CONF", "SLURM_JWT", "SLURM_TIME_FORMAT"}


@dataclass(frozen=True)
class JobState:
    """What the controller says of a job. state: such as RUNNING. ends_at: its time limit (None: not known)."""

    state: str
    ends_at: float | None


def ask(*command: str, timeout_s: float = 60) -> str:
    """What a command of Slurm prints. Raises `LaunchError` with its own words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]}: there is no such command on {os.uname().nodename}") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{' '.join(command)}: no answer within {timeout_s:g} s") from None
    if done.returncode != 0:
        raise LaunchError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def state_in_queue(job_id: str) -> str | None:
    """The state of a job that waits, runs or is about to end; None for any other."""
    try:
        states = ask("squeue", "--noheader", f"--jobs={job_id}", "--format=%T").split()
    except LaunchError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return states[0] if states else None


def read_job(job_id: str) -> JobState | None:
    """What the controller says of a job; None where it cannot be asked."""
    try:
        said = ask("scontrol", "--oneliner", "show", "job", job_id)
    except LaunchError:
        try:
            state = state_in_queue(job_id)
        except LaunchError:
            return None
        return JobState(state, None) if state else None
    fields = dict(re.findall(r"\b(JobState|EndTime)=(\S+)", said))
    try:
        ends_at = datetime.fromisoformat(fields["EndTime"]).timestamp()
    except (KeyError, ValueError):  # Unknown
        ends_at = None
    return JobState(fields.get("JobState", ""), ends_at)


def cluster_name() -> str:
    """What the cluster calls itself. Raises `LaunchError`."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return found[1] if found else ""


def expand_nodes(nodes: str) -> list[str]:
    """The names in a list such as node[1-3]."""
    from submitit.slurm.slurm import _parse_node_list

    return [str(name) for name in _parse_node_list(nodes)]


@contextmanager
def clean_environment() -> Iterator[None]:
    """Without what a job that this process runs in would hand on to one that it submits."""
    unwanted = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name) and name not in _KEPT}
    for name in unwanted:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(unwanted)
