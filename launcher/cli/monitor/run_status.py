"""Collect the status of runs from Slurm and their folders, including incomplete ones. Torch-free; read-only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launcher.cli.monitor import find_runs
from launcher.slurm import client as slurm
from launcher.slurm.client import JobState
from launcher.slurm.records import AttemptEnd, AttemptStart, Job, SlurmFolder
from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.run_dir import job_log, lease
from xlpretrain.run_dir.goodput import Goodput
from xlpretrain.run_dir.layout import Branch, RunDir, Status
from xlpretrain.run_dir.outcome import STOPPED_BY_USER


@dataclass(frozen=True)
class RunStatus:
    """The status of a run as other processes can see it.

    state: Slurm's state while the run is in Slurm, else its own. is_live: True while it is running. job: its last job,
    if it was ever submitted. max_steps: 0 if unknown. left_s: estimated seconds of work until it is finished.
    heartbeat_s: seconds since the last heartbeat; None if there was none or the run exited cleanly. host: rank 0's.
    message: reason of a failure. branch: the run it was forked from.
    """

    run: RunDir
    state: str
    is_live: bool
    job: Job | None
    job_state: JobState | None
    status: Status | None
    events: Sequence[AttemptStart | AttemptEnd]
    step: int
    max_steps: int
    loss: float | None
    valid_loss: float | None
    tokens_per_second: float | None
    left_s: float | None
    heartbeat_s: float | None
    restarts: int
    host: str
    message: str
    branch: Branch | None = None

    @property
    def share(self) -> float | None:
        """Fraction of the steps that are done; None if the total is unknown."""
        return self.step / self.max_steps if self.max_steps else None


def collect(folders: Sequence[RunDir]) -> list[RunStatus]:
    """The status of each run; queries Slurm once for all of them."""
    jobs = [_read_job(run) for run in folders]
    states = slurm.states_of([job.job_id for job in jobs if job is not None])
    return [_collect_one(run, job, states) for run, job in zip(folders, jobs, strict=True)]


def _collect_one(run: RunDir, job: Job | None, states: Mapping[str, JobState] | None) -> RunStatus:
    status, rows, events = _read_status(run), find_runs.last_metrics(run), SlurmFolder.of(run).read_events()
    sign = lease.last_heartbeat(run.lease)
    heartbeat_s = max(0.0, time.time() - sign[1]) if sign and sign[1] else None
    own = _own_state(status, sign, heartbeat_s)
    if run.stop_file.exists() and own not in ("running", "finished", "failed"):
        own = STOPPED_BY_USER
    job_state = (states or {}).get(job.job_id) if job else None
    branch = run.read_branch()
    step = max((status.step if status else 0), rows[-1]["step"] if rows else 0, branch.step if branch else 0)
    max_steps = status.max_steps if status and status.max_steps else _planned_steps(run)
    speed = _last(rows, "time/tokens_per_second")
    step_s = _seconds_per_step(rows)
    finished = own == "finished"
    starts = [event for event in events if isinstance(event, AttemptStart)]
    return RunStatus(
        run=run,
        state=_state(own, job, job_state, answered=states is not None),
        is_live=own == "running",
        job=job,
        job_state=job_state,
        status=status,
        events=events,
        step=step,
        max_steps=max_steps,
        loss=_last(rows, "train/loss"),
        valid_loss=_last(rows, "valid/loss"),
        tokens_per_second=speed,
        left_s=max(0, max_steps - step) * step_s if step_s is not None and max_steps and not finished else None,
        heartbeat_s=heartbeat_s,
        restarts=len(starts) - 1 if starts else int((status.goodput if status else {}).get("goodput/restarts") or 0),
        host=_host(status, starts, job_state),
        message=_message(run, status, events, crashed=own == "crashed"),
        branch=branch,
    )


def _own_state(status: Status | None, sign: tuple[lease.Owner | None, float] | None, heartbeat_s: float | None) -> str:
    """The state according to the run folder."""
    if status is None:
        return "not started"
    if status.state == "running":
        owner = sign[0] if sign else None
        gone = heartbeat_s is None or heartbeat_s > lease.STALE_S or (owner is not None and owner.process.is_dead)
        return "crashed" if gone else "running"
    if status.state == "stopped":
        return {
            "user": STOPPED_BY_USER,
            "time": "stopped by the time limit",
            "signal": "stopped by a signal",
            "disk": "stopped, disk full",
        }.get(status.reason, "stopped")
    return status.state


def _state(own: str, job: Job | None, job_state: JobState | None, *, answered: bool) -> str:
    if job is None:
        return f"local: {own}"
    if not answered:
        return f"{own} (no answer from Slurm)"
    if job_state is not None and job_state.is_waiting:
        return str(job_state)
    if job_state is not None and job_state.is_running:
        return job_state.state if own == "running" else f"{job_state.state} (starting or ending)"
    if own == "running" or (own == "finished" and job_state is not None and job_state.state != "COMPLETED"):
        return f"local: {own}"  # resumed locally after its job had ended
    # The exit code of a stopped run counts as a failure in Slurm.
    if job_state is None or (own == STOPPED_BY_USER and job_state.state == "FAILED"):
        return f"ended: {own}"
    return job_state.state if own == "finished" else f"{job_state.state}: {own}"


def _host(status: Status | None, starts: Sequence[AttemptStart], job_state: JobState | None) -> str:
    """The host of the current attempt; before it is known, the first node of the job."""
    started_at = starts[-1].at if starts else 0.0
    if status is not None and status.host and status.updated_at >= started_at:
        return status.host
    if starts and starts[-1].nodes and job_state is not None and job_state.is_running:
        return starts[-1].nodes[0]
    return status.host if status is not None else ""


def _message(run: RunDir, status: Status | None, events: Sequence[AttemptStart | AttemptEnd], *, crashed: bool) -> str:
    ends = [event for event in events if isinstance(event, AttemptEnd)]
    if events and ends and events[-1] is ends[-1] and ends[-1].message:
        return ends[-1].message
    if crashed:
        return job_log.last_words(run.job_log) or job_log.last_words(run.rank_log(0))
    return status.message if status is not None else ""


def _seconds_per_step(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Productive seconds per step: with evaluations and saves, without restarts."""
    known: list[tuple[int, float]] = [(row["step"], Goodput.from_metrics(row).productive_s) for row in rows]
    known = [(0, 0.0)] * (len(known) == 1) + known
    if not known or known[-1][0] <= known[0][0]:
        return None
    return (known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((float(row[name]) for row in reversed(rows) if isinstance(row.get(name), (int, float))), None)


def _planned_steps(run: RunDir) -> int:
    """`max_steps` from the config, for a run that has not started yet; 0 if unknown."""
    for config in (run.config, SlurmFolder.of(run).config):
        with suppress(ConfigError, OSError):
            return int(schema.read_yaml(config).get("max_steps") or 0)
    return 0


def _read_job(run: RunDir) -> Job | None:
    try:
        return SlurmFolder.of(run).read_job()
    except (ValueError, TypeError, OSError):
        return None


def _read_status(run: RunDir) -> Status | None:
    try:
        return run.read_status()
    except (ValueError, TypeError, OSError):
        return None
