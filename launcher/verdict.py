"""What is to become of a run whose ranks have ended. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.records import End, Start
from xlpretrain.errors import FENCED, FINISHED, STOPPED_EARLY, USER_ERROR
from xlpretrain.run_folder import Status

MAX_IN_VAIN = 2
"""Starts in a row without a new checkpoint after which a run has failed."""


@dataclass(frozen=True)
class Verdict:
    """How a start ended, and whether there shall be another. code: the supervisor's exit code."""

    ended: Literal["finished", "stopped", "failed", "fenced", "crashed"]
    code: int
    message: str = ""

    @property
    def go_on(self) -> bool:
        """Whether the run wants another start."""
        return self.ended == "crashed" or (self.ended == "stopped" and self.message != USERS_WISH)


USERS_WISH = "its user stopped it"


def judge(status: Status | None, *, exit_code: int | None, lost: bool, stop_file: bool, last_words: str) -> Verdict:
    """status: as this start wrote it, if it did. exit_code: of rank 0, if it told. lost: another start has the run."""
    if lost:
        return Verdict("fenced", FENCED, "another start of the run has taken over")
    if status is not None and status.state == "finished":
        return Verdict("finished", FINISHED)
    if exit_code == USER_ERROR or (status is not None and status.state == "failed"):
        return Verdict("failed", USER_ERROR, (status.message if status else "") or last_words)
    if status is not None and status.state == "stopped":
        by_user = stop_file or status.reason == "user"
        return Verdict("stopped", STOPPED_EARLY, USERS_WISH if by_user else f"stopped early: {status.reason}")
    if exit_code == STOPPED_EARLY:
        return Verdict(
            "stopped", STOPPED_EARLY, USERS_WISH if stop_file else "stopped early: status.json is not written"
        )
    if stop_file:
        return Verdict("failed", 1, f"crashed, and its user wants it stopped: {last_words}")
    return Verdict("crashed", 1, f"crashed: {last_words}")


def why_no_more(events: Sequence[Start | End], *, restart: int, max_requeues: int, verdict: Verdict) -> str | None:
    """Why a run that would go on must not; None if it may. events: those of this start included."""
    events = since_submitted(events)
    restart = max(restart, sum(isinstance(event, Start) for event in events) - 1)
    if restart >= max_requeues:
        return f"was put back into the queue {restart} times, which is max_requeues; the last start {verdict.message}"
    if starts_in_vain(events) >= MAX_IN_VAIN:
        return f"{MAX_IN_VAIN} starts in a row brought no new checkpoint; the last {verdict.message}"
    return None


def since_submitted(events: Sequence[Start | End]) -> Sequence[Start | End]:
    """Those since the run's user submitted it: of the last job, and of those that submitted themselves anew."""
    first, job_id, handed_on = 0, "", False
    for index, event in enumerate(events):
        if isinstance(event, End):
            handed_on = event.outcome == "resubmitted"
        elif event.job_id != job_id:
            first, job_id = first if handed_on else index, event.job_id
    return events[first:]


def starts_in_vain(events: Sequence[Start | End]) -> int:
    """How many of the last starts in a row asked for another one without a new checkpoint.

    A start without an end was taken by Slurm (preemption, a lost node), which says nothing against the run.
    """
    in_vain = 0
    began: Start | None = None
    for event in events:
        if isinstance(event, Start):
            began = event
        elif began is not None:
            if event.step > began.step:
                in_vain = 0
            elif event.outcome in ("requeued", "failed"):
                in_vain += 1
            began = None
    return in_vain
