"""The agreement of all ranks at a step boundary: one small all-reduce, and acting on its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from xlpretrain import distributed
from xlpretrain.checkpoint.saver import SaveVotes
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.run_dir.goodput import Work
from xlpretrain.run_dir.stop import STOP_REASONS, StopReason
from xlpretrain.train.callbacks.base import Request, RollBack
from xlpretrain.train.run import Run
from xlpretrain.train.saving import report_failed_save, start_save


class LeaveLoopError(Exception):
    """Raised when the ranks agree to leave the loop at this step: to finish, to stop, or to roll back."""

    def __init__(self, why: StopReason | Literal["finish"] | RollBack):
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class StepDecision:
    """The outcome that all ranks agree on at a step boundary.

    counts: number of the step's predictions (or the sum of their weights), per loss term. requests: requests of the
    callbacks.
    """

    counts: dict[str, int | float]
    stop: StopReason | None
    saves: SaveVotes
    requests: list[Request]


def agree(run: Run, batches: Sequence[Batch], *, reason: StopReason | None) -> StepDecision:
    """Exchange prediction counts, stop reasons, errors, save votes and callback numbers in one all-reduce.

    reason: this rank's reason to stop, or None. If any rank has an error, every rank raises the first one.
    """
    terms, step = run.config.objective.terms, run.state.step
    callback_numbers = run.callbacks.numbers(step)  # may set pending_error
    error = run.pending_error or run.callbacks.pending_error
    values = [
        *(sum(batch.counts[term] for batch in batches) for term in terms),
        *(reason == known for known in STOP_REASONS),
        error is not None,
        *run.saver.votes(step),
        *callback_numbers,
    ]
    numbers = iter(distributed.all_reduce_sum(values))
    sums = {term: next(numbers) for term in terms}
    counts = {term: int(total) if total.is_integer() else total for term, total in sums.items()}
    asked = [known for known in STOP_REASONS if next(numbers)]
    if next(numbers):
        distributed.share_trouble(error)
    saves = SaveVotes(*(next(numbers) for _ in SaveVotes._fields))
    requests = run.callbacks.agreed(step, list(numbers))
    if not asked and "stop" in requests:
        asked = ["signal"]
    return StepDecision(counts, asked[0] if asked else None, saves, requests)


def act_on(run: Run, agreed: StepDecision, *, spent_on: Work, in_section: bool = False) -> None:
    """Raise `LeaveLoopError` if the ranks agreed to leave; otherwise start a save if one is due. Every rank calls it.

    spent_on: the kind of work to which the time until now is charged.
    """
    saver, requests = run.saver, agreed.requests
    report_failed_save(run, saver.apply_votes(agreed.saves))
    if "finish" in requests and not in_section:
        raise LeaveLoopError("finish")
    for request in requests:
        if isinstance(request, RollBack):
            if saver.saved_at is None and agreed.saves.writing:  # the first checkpoint
                report_failed_save(run, saver.wait())
            if saver.saved_at is not None:
                raise LeaveLoopError(request)
            run.recorder.print(f"step {run.state.step}: {request.reason}; no checkpoint to roll back to")
    if agreed.stop:
        raise LeaveLoopError(agreed.stop)
    save_now = "save" in requests and saver.saved_at != run.state.step
    if agreed.saves.writing and save_now:
        report_failed_save(run, saver.wait())
        save_now = saver.saved_at != run.state.step
    if save_now or (agreed.saves.due and not agreed.saves.writing):
        start_save(run, spent_on=spent_on)
