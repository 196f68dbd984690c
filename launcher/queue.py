"""What Slurm says of jobs: by squeue, else scontrol, and by sacct of those that ended long ago. Torch-free.

Any of the three may be missing: many sites have no accounting, many containers no scontrol, a laptop no Slurm. No
JSON, whose layout changes with each release.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from xlpretrain.errors import LaunchError

TIMEOUT_S = 20
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_UNKNOWN_JOB = re.compile(r"invalid job id", re.IGNORECASE)
_FIELD = re.compile(r"(?:^| )(ArrayJobId|ArrayTaskId|JobState|Reason|NodeList)=(\S*)")


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job. state: its word, such as PENDING; reason: why so, if it says; nodes: node[1-2]."""

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue."""
        return self.state in _WAITING

    @property
    def is_running(self) -> bool:
        """Whether it has nodes, or still clears them."""
        return self.state in _RUNNING

    @property
    def is_over(self) -> bool:
        """Whether it neither waits nor runs."""
        return not (self.is_waiting or self.is_running)

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


def ask(job_ids: Sequence[str]) -> dict[str, JobState] | None:
    """The states of jobs by their ids ("12", or "12_3" in an array). None: no Slurm answers on this machine.

    A job that is not in the answer ended so long ago that Slurm has forgotten it. One call for all jobs.
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
    return {**(past or {}), **(states or {})}


def ask_one(job_id: str) -> JobState | None:
    """As `ask`, of one job; None also if Slurm does not know it."""
    return (ask([job_id]) or {}).get(job_id)


def scancel(job_id: str) -> None:
    """End a job, or remove it from the queue. Raises `LaunchError` if Slurm does not."""
    try:
        done = subprocess.run(
            ["scancel", job_id],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError:
        raise LaunchError("scancel: not found; cancel the run on a machine that has Slurm's commands") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"scancel {job_id}: no answer within {TIMEOUT_S} s; try again later") from None
    if done.returncode:
        raise LaunchError(f"scancel {job_id}: {done.stderr.strip()}")


def _squeue(job_ids: Sequence[str]) -> dict[str, JobState] | None:
    # --array: a line for each element, also of those that wait. Reasons may hold any sign, so they come last.
    said = _run(
        "squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r", f"--jobs={','.join(job_ids)}"
    )
    if said is None:
        return None
    rows = (line.split("|", 3) for line in said.splitlines())
    return _among(job_ids, [(row[0], row[1], row[3], row[2]) for row in rows if len(row) == 4])


def _scontrol(job_ids: Sequence[str]) -> dict[str, JobState] | None:
    rows = []
    for job in job_ids:
        said = _run("scontrol", "--oneliner", "show", "job", job)
        if said is None:
            return None
        found = [dict(_FIELD.findall(line)) for line in said.splitlines()]
        # Of a whole array come all elements; of one that waits, the line for all that do.
        own = [one for one in found if job == f"{one.get('ArrayJobId')}_{one.get('ArrayTaskId')}"] or found
        rows += [(job, one.get("JobState", ""), one.get("Reason", ""), one.get("NodeList", "")) for one in own[:1]]
    return _among(job_ids, rows)


def _sacct(job_ids: Sequence[str]) -> dict[str, JobState] | None:
    said = _run(
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
    return _among(job_ids, [(row[0], row[1].split(" ")[0], "", row[2]) for row in rows if len(row) == 3])


def _among(job_ids: Sequence[str], rows: Sequence[tuple[str, str, str, str]]) -> dict[str, JobState]:
    """rows: job, state, reason, nodes."""
    nothing = ("None", "(null)", "None assigned")
    states = {
        job: JobState(state, "" if reason in nothing else reason, "" if nodes in nothing else nodes)
        for job, state, reason, nodes in rows
    }
    return {job: states[job] for job in job_ids if job in states}


def _run(*command: str) -> str | None:
    """What a command of Slurm says; empty if it does not know the job, None if it does not answer."""
    # What the user has set as the defaults of squeue might hide jobs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "" if _UNKNOWN_JOB.search(done.stderr) else None
    return done.stdout
