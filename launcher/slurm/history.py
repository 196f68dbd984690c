"""The starts of a run on Slurm, as it has written them down, and whether there may be another. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.slurm.records import AttemptEnd, AttemptStart
from xlpretrain.run_dir import outcome
from xlpretrain.run_dir.outcome import Verdict


def stop_reason(
    events: Sequence[AttemptStart | AttemptEnd], *, restart: int, max_requeues: int, verdict: Verdict
) -> str | None:
    """The reason why a run that would restart must not; None if it may. events: those of this attempt included."""
    events = since_submitted(events)
    restart = max(restart, sum(isinstance(event, AttemptStart) for event in events) - 1)
    why = outcome.stop_reason(
        restarts=restart,
        limit=max_requeues,
        limit_name="max_requeues",
        attempts_without_progress=attempts_without_progress(events),
    )
    return why and f"{why}; the last start {verdict.message}"


def since_submitted(events: Sequence[AttemptStart | AttemptEnd]) -> Sequence[AttemptStart | AttemptEnd]:
    """The attempts since the user submitted the run: of the last job, and of those that requeued themselves."""
    first, job_id, handed_on = 0, "", False
    for index, event in enumerate(events):
        if isinstance(event, AttemptEnd):
            handed_on = event.outcome == "resubmitted"
        elif event.job_id != job_id:
            first, job_id = first if handed_on else index, event.job_id
    return events[first:]


def made_progress(start: AttemptStart, end: AttemptEnd) -> bool:
    """True if an attempt wrote a checkpoint. Records of earlier versions have only the steps."""
    return end.step > start.step if end.progress is None else end.progress


def attempts_without_progress(events: Sequence[AttemptStart | AttemptEnd]) -> int:
    """Count the last attempts in a row that asked for another one without a new checkpoint.

    An attempt without an end was ended by Slurm (preemption, a lost node), which says nothing against the run.
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
