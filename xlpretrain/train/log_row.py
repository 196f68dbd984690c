"""The metrics row of a step: one reduction, then the sections that are due, such as an evaluation."""

from __future__ import annotations

from functools import partial

from xlpretrain import distributed
from xlpretrain.errors import XLPretrainError
from xlpretrain.profiling.ranges import paused
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.agreement import LeaveLoopError, act_on, agree
from xlpretrain.train.callbacks.base import Callback, CompletedStep
from xlpretrain.train.run import Run
from xlpretrain.train.saving import amend_save
from xlpretrain.train.throughput import StepTimer, peak_memory_bytes


def record(run: Run, done: CompletedStep) -> None:
    """Log and evaluate, if due. Raises `LeaveLoopError` if the ranks agree to leave the loop before it is done."""
    step = run.state.step
    logged = step == run.max_steps or step % run.config.log.every_steps == 0
    row = _training_metrics(run, done) if logged else {}
    run.recorder.goodput.add_time("step_s")
    if run.callbacks.due_sections(step):
        run.state.unrecorded, run.state.done_sections = row, []
        finish_row(run)
        return
    if row:
        run.recorder.record(step, row)
    run.callbacks.after_row(step, row)


def finish_row(run: Run) -> None:
    """Run the sections that this step's row still lacks, then record it. Raises `LeaveLoopError`.

    Until it is recorded, the row is part of the state, so a checkpoint of this step tells the next attempt which
    sections remain.
    """
    state, row = run.state, run.state.unrecorded
    if row is None:
        return
    for name, callback in run.callbacks.due_sections(state.step):
        if name not in state.done_sections:
            found = _section(run, name, callback)
            row |= {"tokens": state.tokens, **found}
            state.done_sections.append(name)
            if "valid/loss" in found:
                run.callbacks.after_evaluation(state.step, found)
            try:
                _pause(run, None, None)  # a rank may have failed after its section's last pause
            except LeaveLoopError:
                amend_save(run)
                raise
            amend_save(run)
    state.unrecorded, state.done_sections = None, []
    run.step_timer = StepTimer()
    if row:
        run.recorder.record(state.step, row)
    amend_save(run)
    run.callbacks.after_row(state.step, row)


def _training_metrics(run: Run, done: CompletedStep) -> Metrics:
    config, state = run.config, run.state
    values = [*(float(total) for total in done.host_sums.values()), *run.callbacks.row_numbers(state.step)]
    reduced = distributed.all_reduce_sum(values)
    losses = dict(zip(done.host_sums, reduced, strict=False))
    means = {term: losses[term] / done.counts[term] if done.counts[term] else 0.0 for term in losses}
    weights = config.objective.weights
    return {
        "tokens": state.tokens,
        "train/loss": sum(weights[term] * means[term] for term in means),
        "train/lr": done.lr,
        "train/grad_norm": done.grad_norm,
        **{f"train/loss/{name}": mean for name, mean in {**means, **config.objective.part_losses(means)}.items()},
        "data/epoch": run.samples.passes(run.data_step),
        **{f"data/epoch/{corpus}": epoch for corpus, epoch in run.samples.epochs(run.data_step).items()},
        **run.callbacks.metrics(state.step, reduced[len(losses) :]),
        "events/failed_saves": state.failed_saves,
        "events/skipped_steps": sum(last - first for first, last in state.skipped_windows),
        "memory/peak_bytes": peak_memory_bytes(run.engine.device),
        **run.step_timer.lap(
            tokens_per_step=config.tokens_per_step,
            flops_per_token=run.flops_per_token,
            peak_flops=run.peak_flops,
        ),
    }


def _section(run: Run, name: str, callback: Callback) -> Metrics:
    """Run a section. If the ranks agree to leave the loop during it, its time counts as lost."""
    goodput, limit_s = run.recorder.goodput, callback.section_timeout_s
    before_s = goodput.eval_s
    pause = partial(_pause, run, limit_s)
    run.watchdog.progress(limit_s)
    try:
        try:
            with paused():
                return callback.section(pause)
        except XLPretrainError as error:
            pause(error)  # raises it on every rank
            raise
    except LeaveLoopError:
        goodput.add_time("eval_s")
        goodput.lost_s += goodput.eval_s - before_s
        goodput.eval_s = before_s
        raise
    except Exception as error:
        if not isinstance(error, XLPretrainError):
            error.add_note(f"in the callback {name!r}, in its method section")
        raise
    finally:
        goodput.add_time("eval_s")
        run.watchdog.progress()


def _pause(run: Run, limit_s: float | None, error: XLPretrainError | None) -> None:
    """Agree between two batches of a section, as at a step boundary. Every rank calls it; see `Pause`."""
    run.watchdog.progress(limit_s)
    run.pending_error = run.pending_error or error
    act_on(run, agree(run, [], reason=run.stop.reason()), spent_on="eval_s", in_section=True)
