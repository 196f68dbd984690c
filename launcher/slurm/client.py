"""Run Slurm's commands and parse job states, for submission, monitoring and jobs themselves. Torch-free.

Job states come from squeue or else scontrol, and from sacct for jobs that ended long ago. Any of the three may be
missing: many sites have no accounting, many containers no scontrol, a laptop no Slurm. JSON output is not used, since
its layout changes between releases.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from xlpretrain.errors import LaunchError

_INHERITED = re.compile(
    r"(SLURM|SLURMD|SRUN|SUBMITIT|TORCHELASTIC|XLPRETRAIN)_.*|(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
)
_KEPT = {"SLURM_CONF", "SLURM_JWT", "SLURM_TIME_FORMAT"}
# User defaults for squeue and sacct, which could hide jobs or change time formats.
_HABITS = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT")
_QUICK_S = 20  # timeout of state queries
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_UNKNOWN_JOB = re.compile(r"invalid job id", re.IGNORECASE)
_FIELD = re.compile(r"(?:^| )(ArrayJobId|ArrayTaskId|JobState|Reason|NodeList|EndTime)=(\S*)")
_NOTHING = ("None", "(null)", "None assigned")


@dataclass(frozen=True)
class JobState:
    """State of a job according to Slurm.

    state: Slurm's term, such as PENDING. reason: Slurm's reason for it, if any. nodes: such as node[1-2]. ends_at: end
    of its time limit in seconds since 1970, if known.
    """

    state: str
    reason: str = ""
    nodes: str = ""
    ends_at: float | None = None

    @classmethod
    def parse(cls, state: str, *, reason: str, nodes: str, ends: str) -> JobState:
        """Parse the fields of Slurm's output."""
        try:
            ends_at = datetime.fromisoformat(ends).timestamp()
        except ValueError:  # Unknown, N/A
            ends_at = None
        return cls(state, "" if reason in _NOTHING else reason, "" if nodes in _NOTHING else nodes, ends_at)

    @property
    def is_waiting(self) -> bool:
        """True if the job is in the queue."""
        return self.state in _WAITING

    @property
    def is_running(self) -> bool:
        """True if the job holds nodes or is completing."""
        return self.state in _RUNNING

    @property
    def is_over(self) -> bool:
        """True if the job is neither queued nor running."""
        return not (self.is_waiting or self.is_running)

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


def ask(*command: str, timeout_s: float = 60) -> str:
    """Run a Slurm command and return its output. Raises `LaunchError` with the command's error message."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_HABITS)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    except FileNotFoundError:
        raise LaunchError(f"{command[0]}: command not found on {os.uname().nodename}") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{' '.join(command)}: no answer within {timeout_s:g} s") from None
    if done.returncode != 0:
        raise LaunchError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def states_of(job_ids: Sequence[str]) -> dict[str, JobState] | None:
    """States of jobs by job id ("12", or "12_3" in an array). None: Slurm does not answer on this machine.

    Jobs missing from the result ended so long ago that Slurm no longer lists them. Makes one call for all jobs.
    """
    if not job_ids:
        return {}
    states = _squeue(job_ids)
    if states is None:
        states = _scontrol(job_ids)
    missing = [job for job in job_ids if job not in (states or {})]
    past = _sacct(missing) if missing else {}
    if states is None and not past:
        return None
    known = {**(past or {}), **(states or {})}
    return {job: known[job] for job in job_ids if job in known}


def state_of(job_id: str) -> JobState | None:
    """State of one job; None if Slurm does not know it or does not answer."""
    return (states_of([job_id]) or {}).get(job_id)


def state_here(job_id: str, cluster: str) -> JobState | None:
    """State of one job of `cluster`; None also if this is another cluster, where the id means another job."""
    state = state_of(job_id)
    if state is None or state.is_over or not cluster:
        return state
    with suppress(LaunchError):  # no scontrol
        if cluster_name() not in ("", cluster):
            return None
    return state


def cluster_name() -> str:
    """Name of the cluster. Raises `LaunchError` if scontrol cannot be run."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return found[1] if found else ""


@contextmanager
def clean_environment() -> Iterator[None]:
    """Remove variables that a job submitted from inside a job must not inherit, then restore them."""
    unwanted = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name) and name not in _KEPT}
    for name in unwanted:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(unwanted)


def _squeue(job_ids: Sequence[str]) -> dict[str, JobState] | None:
    # --array: one line per array task, also for queued ones. Reasons may contain any character, so they come last.
    said = _look_up(
        "squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%e|%r", f"--jobs={','.join(job_ids)}"
    )
    if said is None:
        return None
    rows = (line.split("|", 4) for line in said.splitlines())
    return {row[0]: JobState.parse(row[1], reason=row[4], nodes=row[2], ends=row[3]) for row in rows if len(row) == 5}


def _scontrol(job_ids: Sequence[str]) -> dict[str, JobState] | None:
    states = {}
    for job in job_ids:
        said = _look_up("scontrol", "--oneliner", "show", "job", job)
        if said is None:
            return None
        found: list[Mapping[str, str]] = [dict(_FIELD.findall(line)) for line in said.splitlines()]
        # An array id lists all its tasks; a queued task only has the line shared by all queued tasks.
        own = [one for one in found if job == f"{one.get('ArrayJobId')}_{one.get('ArrayTaskId')}"] or found
        for one in own[:1]:
            states[job] = JobState.parse(
                one.get("JobState", ""),
                reason=one.get("Reason", ""),
                nodes=one.get("NodeList", ""),
                ends=one.get("EndTime", ""),
            )
    return states


def _sacct(job_ids: Sequence[str]) -> dict[str, JobState] | None:
    said = _look_up(
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        "--format=JobID,State,NodeList",
        f"--jobs={','.join(job_ids)}",
    )
    if said is None:
        return None
    rows = (line.split("|") for line in said.splitlines())
    # "CANCELLED by 1000"
    return {
        row[0]: JobState.parse(row[1].split(" ")[0], reason="", nodes=row[2], ends="") for row in rows if len(row) == 3
    }


def _look_up(*command: str) -> str | None:
    """Output of a job query; empty if Slurm does not know the jobs, None if it does not answer."""
    try:
        return ask(*command, timeout_s=_QUICK_S)
    except LaunchError as error:
        return "" if _UNKNOWN_JOB.search(str(error)) else None
