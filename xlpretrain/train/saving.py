"""The training loop's side of checkpoints: copying the state, and handling a failed save."""

from __future__ import annotations

from xlpretrain.errors import CheckpointError
from xlpretrain.profiling.names import PAUSE
from xlpretrain.profiling.ranges import named
from xlpretrain.run_dir.goodput import Work
from xlpretrain.train.run import Run


def start_save(run: Run, *, behind: bool = True, spent_on: Work = "step_s") -> None:
    """Copy the state of this step and write it in the background. Every rank calls it, with no save in flight.

    behind: write in the background. spent_on: the kind of work to which the time until now is charged.
    """
    run.recorder.goodput.add_time(spent_on)
    run.state.callbacks = run.callbacks.state()
    with named(PAUSE):
        run.saver.start(
            run.state,
            run.engine,
            memory=run.memory_of_streams(),
            stream_states=run.callbacks.stream_states(run.streams),
            behind=behind,
        )
    run.recorder.goodput.add_time("save_s")


def save_the_last(run: Run) -> None:
    """Wait until this step is saved. Raises `CheckpointError` on every rank if that fails."""
    if failure := save_this_step(run):
        raise CheckpointError(failure)


def save_this_step(run: Run) -> str | None:
    """Wait until this step is saved. Every rank calls it. Returns the reason if that failed, else None."""
    failure = run.saver.wait()
    if run.saver.saved_at != run.state.step:
        report_failed_save(run, failure)
        start_save(run, behind=False)
        failure = run.saver.wait()
    run.recorder.goodput.add_time("save_s")
    return failure


def amend_save(run: Run) -> None:
    """Update this step's checkpoint, if there is one, to the current state. Every rank calls it."""
    run.state.callbacks = run.callbacks.state()
    report_failed_save(run, run.saver.amend(run.state))


def report_failed_save(run: Run, failure: str | None) -> None:
    """Count and print a failed save, if there was one. Training continues; the last good checkpoint is kept."""
    if failure is not None:
        run.state.failed_saves += 1
        run.recorder.print(f"{failure}; training continues and will save again later")
