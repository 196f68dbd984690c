"""Checkpoints from the loop's side: when the state is copied, and what follows from a save that failed."""

from __future__ import annotations

import torch

from xlpretrain.errors import CheckpointError
from xlpretrain.run_dir.goodput import Work
from xlpretrain.train.run import Run


def start_save(run: Run, *, behind: bool = True, spent_on: Work = "step_s") -> None:
    """Copy the state of this step; the rest happens behind the loop. Every rank calls it, none of them writing.

    spent_on: the work that took the time until now.
    """
    run.recorder.goodput.add_time(spent_on)
    run.state.callbacks = run.callbacks.state()
    run.saver.start(
        run.state,
        run.engine,
        streams=run.streams,
        memory=torch.cat(run.memory, dim=1),
        stream_states=run.callbacks.stream_states(run.streams),
        behind=behind,
    )
    run.recorder.goodput.add_time("save_s")


def save_the_last(run: Run) -> None:
    """See this step on the disk. Raises `CheckpointError`, on every rank, if that fails."""
    if failure := save_this_step(run):
        raise CheckpointError(failure)


def save_this_step(run: Run) -> str | None:
    """See this step on the disk. Every rank calls it. Returns why it is not there."""
    failure = run.saver.wait()
    if run.saver.saved_at != run.state.step:
        tell_of_failed_save(run, failure)
        start_save(run, behind=False)
        failure = run.saver.wait()
    run.recorder.goodput.add_time("save_s")
    return failure


def amend_save(run: Run) -> None:
    """Let the checkpoint of this step, if there is one, hold the state as it is by now. Every rank calls it."""
    run.state.callbacks = run.callbacks.state()
    tell_of_failed_save(run, run.saver.amend(run.state))


def tell_of_failed_save(run: Run, failure: str | None) -> None:
    """Training goes on without it: the last good checkpoint stays, and there will be another."""
    if failure is not None:
        run.state.failed_saves += 1
        run.recorder.print(f"{failure}; training goes on, and saves again later")
