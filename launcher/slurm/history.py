"""Restart limits of a run on Slurm, from the recorded attempts. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.slurm.records import AttemptEnd, AttemptStart
from xlpretrain.run_dir import outcome
from xlpretrain.run_dir.outcome import Verdict


def stop_reason(
    events: Sequence[AttemptStart | AttemptEnd], *, restart: int, max_requeues: int, verdict: Verdict
) -> str | None:
    """Reason why a run must not restart; None if it may. events: includes those of the current attempt."""
    events = since_submitted(events)
    restart = max(restart, sum(isinstance(event, AttemptStart) for event in events) - 1)
    why = outcome.stop_reason(
        restarts=restart,
        limit=max_requeues,
        limit_name="max_requeues",
        attempts_without_progress=attempts_without_progress(events),
    )
    return why and f"{why}; last attempt: {verdict.message}"


def since_submitted(events: Sequence[AttemptStart | AttemptEnd]) -> Sequence[AttemptStart | AttemptEnd]:
    """Events since the user last submitted the run, including those of jobs that it resubmitted itself as."""
    first, job_id, was_resubmitted = 0, "", False
    for index, event in enumerate(events):
        if isinstance(event, AttemptEnd):
            was_resubmitted = event.outcome == "resubmitted"
        elif event.job_id != job_id:
            first, job_id = first if was_resubmitted else index, event.job_id
    return events[first:]


def made_progress(start: AttemptStart, end: AttemptEnd) -> bool:
    """True if an attempt wrote a checkpoint. Records of earlier versions only have the steps."""
    return end.step > start.step if end.progress is None else end.progress


def attempts_without_progress(events: Sequence[AttemptStart | AttemptEnd]) -> int:
    """Number of consecutive latest attempts that ended in a restart without a new checkpoint.

    Attempts without a recorded end were killed by Slurm (preemption, a lost node) and do not count.
    """
    count = 0
    began: AttemptStart | None = None
    for event in events:
        if isinstance(event, AttemptStart):
            began = event
        elif began is not None:
            if made_progress(began, event):
                count = 0
            elif event.outcome in ("requeued", "failed"):
                count += 1
            began = None
    return count
