"""The training loop.

    for each step: fetch the micro-batches, agree with the other ranks (counts, stops, errors, saves), act on that, run
    the micro-batches through the engine, update once, and notify the callbacks; then log and evaluate if due.

Callbacks do the rest, from evaluation to spike detection: `callbacks/__init__.py` lists them. `setup.py` builds a
`Run`, and `__main__.py` starts it on each rank.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from xlpretrain import distributed
from xlpretrain.data.order import hash_ints
from xlpretrain.engine.train_step import train_step
from xlpretrain.errors import XLPretrainError
from xlpretrain.models.pretraining_model import Batch, Loss
from xlpretrain.profiling.names import DATA
from xlpretrain.profiling.ranges import named
from xlpretrain.run_dir.stop import StopReason
from xlpretrain.train.agreement import LeaveLoopError, act_on, agree
from xlpretrain.train.callbacks.base import CompletedStep, MicroBatch, RollBack
from xlpretrain.train.log_row import finish_row, record
from xlpretrain.train.rollback import roll_back
from xlpretrain.train.run import Run
from xlpretrain.train.saving import report_failed_save, save_the_last, save_this_step, start_save
from xlpretrain.train.stages.change import change_stage


def train(run: Run) -> StopReason | None:
    """Train until `max_steps` or an early stop, and write a checkpoint of the last step.

    Every rank must call it. Returns the reason for an early stop, or None. If one rank raises `XLPretrainError` (a
    damaged shard, a disk too full for the last checkpoint), every rank raises it with the same message.
    """
    with run.stop.install_handlers(), closing(run.saver), closing(run.callbacks):
        try:
            stopped = _train(run)
            save_the_last(run)
        except XLPretrainError:
            report_failed_save(run, run.saver.wait())  # all ranks get here, so a save in flight can finish
            raise
    return stopped


def _train(run: Run) -> StopReason | None:
    """Train to the end, or until the ranks agree to stop; returns the reason. A rollback restarts from a checkpoint.

    If metrics or status cannot be written (reason `disk`), training continues until a checkpoint can be saved.
    """
    while True:
        try:
            _steps(run)
            return None
        except LeaveLoopError as left:
            if left.why == "finish":
                return None
            if isinstance(left.why, RollBack):
                report_failed_save(run, run.saver.wait())
                roll_back(run, left.why)
                start_save(run)
                continue
            failure = save_this_step(run) if left.why == "disk" else None
            if failure is None:
                return left.why
            report_failed_save(run, failure)
            run.recorder.be_patient()


def _steps(run: Run) -> None:
    """Train until `max_steps`. Raises `LeaveLoopError`."""
    finish_row(run)  # for the step at which the previous attempt stopped
    while run.state.step < run.max_steps:
        change_stage(run)
        _steps_of_stage(run, run.stages.end(run.state.step, run.max_steps))
    distributed.share_any_trouble(run.pending_error or run.callbacks.pending_error)


def _steps_of_stage(run: Run, end: int) -> None:
    """Train until the step `end`, all in one stage. Raises `LeaveLoopError`."""
    with closing(run.loader.steps(start=run.state.step, stop=end)) as batches_of_steps:
        while run.state.step < end:
            run.callbacks.before_fetch(run.state.step)
            batches = _fetch(run, batches_of_steps)
            agreed = agree(run, batches, reason=run.stop.reason() or run.recorder.reason_to_stop())
            act_on(run, agreed, spent_on="step_s")
            done = _step(run, batches, agreed.counts)
            run.callbacks.after_step(done)
            record(run, done)


def _fetch(run: Run, batches_of_steps: Iterator[list[Batch]]) -> list[Batch]:
    """Fetch the next step's micro-batches. If this rank's data is damaged: set `pending_error` and return []."""
    run.recorder.goodput.add_time("step_s")
    started = time.perf_counter()
    try:
        with named(DATA):
            return next(batches_of_steps)
    except XLPretrainError as error:
        run.pending_error = error
        return []
    finally:
        run.step_timer.data_wait_s += time.perf_counter() - started
        run.recorder.goodput.add_time("data_wait_s")


def _step(run: Run, batches: list[Batch], counts: dict[str, int | float]) -> CompletedStep:
    """Run one training step and advance the step counter."""
    config, step = run.config, run.state.step
    lr = config.optimizer.lr * config.schedule.factor(step)
    run.callbacks.before_step(step)

    def after_forward(number: int, loss: Loss) -> None:
        streams = run.loader.micro_batches[number]
        run.callbacks.after_forward(MicroBatch(step, number, streams, batches[number], run.loader.samples), loss)

    done = train_step(
        run.engine,
        batches,
        run.memory,
        counts=counts,
        lr=lr,
        seed=hash_ints(config.seed, step, distributed.rank()),
        after_forward=after_forward,
    )
    run.memory = done.memory
    run.step_timer.steps += 1
    run.watchdog.progress()
    run.state.step += 1
    run.state.tokens += config.tokens_per_step
    return CompletedStep(run.state.step, done.sums, counts, done.grad_norm, lr, done.host_sums)
