"""What a job, or who submits one, asks Slurm's own commands. Torch-free. See also queue.py."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from launcher import queue
from xlpretrain.errors import LaunchError

_INHERITED = re.compile(
    r"(SLURM|SLURMD|SRUN|SUBMITIT|TORCHELASTIC|XLPRETRAIN)_.*|(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
)
_KEPT = {"SLURM_CONF", "SLURM_JWT", "SLURM_TIME_FORMAT"}


@dataclass(frozen=True)
class Limits:
    """How a job stands. state: such as RUNNING. ends_at: when its time is up, in seconds since 1970, if known."""

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


def read_job(job_id: str) -> Limits | None:
    """What the controller says of a job; None where it cannot be asked."""
    try:
        said = ask("scontrol", "--oneliner", "show", "job", job_id)
    except LaunchError:
        known = queue.ask_one(job_id)
        return Limits(known.state, None) if known else None
    fields = dict(re.findall(r"\b(JobState|EndTime)=(\S+)", said))
    try:
        ends_at = datetime.fromisoformat(fields["EndTime"]).timestamp()
    except (KeyError, ValueError):  # Unknown
        ends_at = None
    return Limits(fields.get("JobState", ""), ends_at)


def cluster_name() -> str:
    """What the cluster calls itself. Raises `LaunchError` where scontrol cannot be asked."""
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
