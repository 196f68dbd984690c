"""The training loop.

    for each step: agree with the other ranks (counts, stop, trouble, saves), begin to save if due, put the
    micro-batches through the engine, update once, then log and evaluate if due.

Before each batch of an evaluation the ranks agree on the same things, so that a stop cuts it short: the checkpoint then
says that the evaluation of its step is still to be done, and the next start begins with that.

Everything else is elsewhere: `setup.py` puts a `Run` together, `__main__.py` starts it on each rank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.checkpoint.saver import SaveVotes
from xlpretrain.data.order import hash_ints
from xlpretrain.engine.train_step import train_step
from xlpretrain.errors import CheckpointError, TrainingError, XLPretrainError
from xlpretrain.evaluation.held_out import EvalResult, Pause
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.run_dir.goodput import Work
from xlpretrain.run_dir.stop import STOP_REASONS, StopReason
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.best_checkpoint import patience_exhausted, should_save, update_best
from xlpretrain.train.callbacks.corpus_losses import add_losses, corpus_metrics
from xlpretrain.train.callbacks.spike_rollback import detect_spike, local_loss, roll_back
from xlpretrain.train.run import Run
from xlpretrain.train.throughput import StepTimer, peak_memory_bytes

T = TypeVar("T")


class _LoopEndedError(Exception):
    """The ranks agree to leave the loop at this step, for a reason to stop or to go back before a loss spike."""

    def __init__(self, why: StopReason | Literal["spike"]):
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class StepDecision:
    """The facts that all ranks agree on at a step boundary."""

    counts: dict[str, int]
    damaged_samples: int
    stop: StopReason | None
    saves: SaveVotes
    spike: bool


def train(run: Run) -> StopReason | None:
    """Train until `max_steps`, or until something asks to stop; a checkpoint of the last step is then on the disk.

    Every rank calls it. Returns why it stopped early, if it did. Raises `XLPretrainError` on every rank where one of
    them met the user's mistake (a damaged shard, a disk too full for the last checkpoint), with its message.
    """
    with run.stop.install_handlers(), closing(run.saver):
        try:
            stopped = _steps(run)
            _save_the_last(run)
        except XLPretrainError:
            _tell_of_failed_save(run, run.saver.wait())  # all ranks are here, and what is being written is worth having
            raise
    return stopped


def _steps(run: Run) -> StopReason | None:
    """Train until `max_steps`, or until the ranks agree to stop: returns why. After a loss spike, go back first.

    Where it is the run's own files that cannot be written, it goes on until a checkpoint can be.
    """
    while True:
        try:
            _steps_to_the_end(run)
            return None
        except _LoopEndedError as ended:
            if ended.why == "spike":
                _tell_of_failed_save(run, run.saver.wait())
                roll_back(run)
                start_save(run)
                continue
            failure = _save_this_step(run) if ended.why == "disk" else None
            if failure is None:
                return ended.why
            _tell_of_failed_save(run, failure)
            run.recorder.be_patient()


def _steps_to_the_end(run: Run) -> None:
    """Train until `max_steps`, or until `stop.patience` is over. Raises `_LoopEndedError`."""
    _finish_row(run)  # which the start before was stopped at
    with closing(run.loader.steps(start=run.state.step)) as batches_of_steps:
        while run.state.step < run.max_steps and not patience_exhausted(run):
            batches = _fetch(run, batches_of_steps)
            agreed = _agree(run, batches, reason=run.stop.reason() or run.recorder.reason_to_stop())
            _act_on(run, agreed, before="step_s")
            if agreed.damaged_samples:
                _tell_of_damage(run, agreed.damaged_samples)
            sums, grad_norm = _step(run, batches, agreed.counts)
            run.watchdog.progress()
            run.state.step += 1
            run.state.tokens += run.config.tokens_per_step
            _count_bad_numbers(run, grad_norm)
            if run.state.step < run.max_steps:
                run.last_losses = local_loss(run, sums, agreed.counts)
            _record(run, sums, agreed.counts, grad_norm)
            _refuse_bad_numbers(run)


def start_save(run: Run, *, behind: bool = True, before: Work = "step_s") -> None:
    """Copy the state of this step; the rest happens behind the loop. Every rank calls it, none of them writing.

    before: what the time until now was spent on.
    """
    run.recorder.goodput.add_time(before)
    memory = torch.cat(run.memory, dim=1)
    run.saver.start(run.state, run.engine, streams=run.streams, memory=memory, behind=behind)
    run.recorder.goodput.add_time("save_s")


def _save_the_last(run: Run) -> None:
    """See this step on the disk. Raises `CheckpointError`, on every rank, if that fails."""
    if failure := _save_this_step(run):
        raise CheckpointError(failure)


def _save_this_step(run: Run) -> str | None:
    """See this step on the disk. Every rank calls it. Returns why it is not there."""
    failure = run.saver.wait()
    if run.saver.saved_at != run.state.step:
        _tell_of_failed_save(run, failure)
        start_save(run, behind=False)
        failure = run.saver.wait()
    run.recorder.goodput.add_time("save_s")
    return failure


def _tell_of_failed_save(run: Run, failure: str | None) -> None:
    """Training goes on without it: the last good checkpoint stays, and there will be another."""
    if failure is not None:
        run.state.failed_saves += 1
        run.recorder.print(f"{failure}; training goes on, and saves again later")


def _fetch(run: Run, batches_of_steps: Iterator[list[Batch]]) -> list[Batch]:
    """The next step's micro-batches; none if this rank's data is damaged, which it then keeps as its trouble."""
    run.recorder.goodput.add_time("step_s")
    started = time.perf_counter()
    try:
        return next(batches_of_steps)
    except XLPretrainError as error:
        run.pending_error = error
        return []
    finally:
        run.step_timer.data_wait_s += time.perf_counter() - started
        run.recorder.goodput.add_time("data_wait_s")


def _agree(run: Run, batches: Sequence[Batch], *, reason: StopReason | None) -> StepDecision:
    """One small all-reduce: the step's counts per loss term, whether to stop, trouble on a rank, and its saves.

    reason: this rank's, if there is one to stop. Raises the first rank's trouble on every rank.
    """
    terms = run.config.objective.terms
    values = [
        *(sum(batch.counts[term] for batch in batches) for term in terms),
        *(reason == known for known in STOP_REASONS),
        len(run.loader.damage.get(run.state.step, ())),
        run.pending_error is not None,
        run.last_losses or 0.0,
        *run.saver.votes(run.state.step),
    ]
    numbers = iter(distributed.all_reduce_sum(values))
    counts = {term: int(next(numbers)) for term in terms}
    asked = [known for known in STOP_REASONS if next(numbers)]
    damaged_samples = int(next(numbers))
    if next(numbers):
        distributed.share_trouble(run.pending_error)
    spike = detect_spike(run, next(numbers))
    return StepDecision(counts, damaged_samples, asked[0] if asked else None, SaveVotes(*numbers), spike)


def _act_on(run: Run, agreed: StepDecision, *, before: Work) -> None:
    """Leave the loop if that was agreed, by `_LoopEndedError`; else begin to save if due. Every rank calls it.

    before: what the time until now was spent on.
    """
    _tell_of_failed_save(run, run.saver.apply_votes(agreed.saves))
    if agreed.spike:
        raise _LoopEndedError("spike")
    if agreed.stop:
        raise _LoopEndedError(agreed.stop)
    if agreed.saves.writing and should_save(run):
        _tell_of_failed_save(run, run.saver.wait())
    if should_save(run) or (agreed.saves.due and not agreed.saves.writing):
        start_save(run, before=before)


def _tell_of_damage(run: Run, num_samples: int) -> None:
    """Count the samples of this step that are left out, on every rank, and say which blocks they are of, once each."""
    run.state.damaged_rows += num_samples
    for messages in distributed.gather_objects(run.loader.damage.pop(run.state.step, [])):
        for message in messages:
            if message not in run.reported_damage:
                run.reported_damage.add(message)
                run.recorder.print(f"going on without the samples of a block: {message}")


def _step(run: Run, batches: list[Batch], counts: dict[str, int]) -> tuple[dict[str, Tensor], float]:
    """One update. Returns this rank's sum of each loss term and the global gradient norm before clipping."""
    config, step = run.config, run.state.step
    logged = _is_logged(run, step + 1)
    if logged:
        run.predictions.count(batches)
    done = train_step(
        run.engine,
        batches,
        run.memory,
        counts=counts,
        lr=config.optimizer.lr * config.schedule.factor(step),
        seed=hash_ints(config.seed, step, distributed.rank()),
        after_forward=partial(add_losses, run) if logged else None,
    )
    run.memory = done.memory
    run.step_timer.steps += 1
    return done.sums, done.grad_norm


def _count_bad_numbers(run: Run, grad_norm: float) -> None:
    """Count a step whose update was skipped."""
    if math.isfinite(grad_norm):
        run.state.nonfinite_in_a_row = 0
        return
    run.state.skipped_updates += 1
    run.state.nonfinite_in_a_row += 1
    run.recorder.print(f"step {run.state.step}: loss or gradient is not finite; no update was made")


def _refuse_bad_numbers(run: Run) -> None:
    """Raise `TrainingError` after several such steps in a row."""
    limit = run.config.stop.max_nonfinite_steps
    if run.state.nonfinite_in_a_row >= limit:
        raise TrainingError(
            f"{limit} steps in a row, up to step {run.state.step}, had a loss or gradient that is not finite;"
            " lower optimizer.lr or optimizer.grad_clip, lengthen schedule.warmup_steps, or use engine.precision=fp32,"
            f" and resume from the last checkpoint in {run.folder.checkpoints}"
        )


def _record(run: Run, sums: dict[str, Tensor], counts: dict[str, int], grad_norm: float) -> None:
    """Log and evaluate, if due. Raises `_LoopEndedError` if the ranks agree to leave the loop before that is done."""
    row = _training_metrics(run, sums, counts, grad_norm) if _is_logged(run, run.state.step) else {}
    run.recorder.goodput.add_time("step_s")
    if _due_evaluation(run) or _due_probe(run):
        run.state.unrecorded = row
        _finish_row(run)
    elif row:
        run.recorder.record(run.state.step, row)


def _training_metrics(run: Run, sums: dict[str, Tensor], counts: dict[str, int], grad_norm: float) -> Metrics:
    config, state = run.config, run.state
    losses = dict(zip(sums, distributed.all_reduce_sum([float(s) for s in sums.values()]), strict=True))
    means = {term: losses[term] / counts[term] if counts[term] else 0.0 for term in losses}
    weights = config.objective.weights
    return {
        "tokens": state.tokens,
        "train/loss": sum(weights[term] * means[term] for term in means),
        "train/lr": config.optimizer.lr * config.schedule.factor(state.step - 1),
        "train/grad_norm": grad_norm,
        **{f"train/loss/{term}": mean for term, mean in means.items()},
        "data/epoch": run.data_step / run.samples.steps_per_epoch,
        **corpus_metrics(run),
        **run.predictions.metrics(is_last=state.step == run.max_steps, warn=run.recorder.print),
        "events/skipped_updates": state.skipped_updates,
        "events/failed_saves": state.failed_saves,
        "events/damaged_rows": state.damaged_rows,
        "events/rollbacks": state.rollbacks,
        "events/skipped_steps": sum(last - first for first, last in state.skipped_windows),
        "memory/peak_bytes": peak_memory_bytes(run.engine.device),
        **run.step_timer.lap(
            tokens_per_step=config.tokens_per_step,
            flops_per_token=run.flops_per_token,
            peak_flops=run.peak_flops,
        ),
    }


def _finish_row(run: Run) -> None:
    """Do what this step's metrics still lack, evaluation and probe, and record them. Raises `_LoopEndedError`.

    Until then they are part of the state: a checkpoint of this step says what is to be done first by who goes on.
    """
    state, row = run.state, run.state.unrecorded
    if row is None:
        return
    if (evaluate := _due_evaluation(run)) and "valid/loss" not in row:
        found = _interruptible(run, evaluate)
        update_best(run, found)
        row |= {"tokens": state.tokens, **found.metrics()}
        _tell_of_failed_save(run, run.saver.amend(state))
    if (probe := _due_probe(run)) and "valid/probe_loss" not in row:
        row |= {"tokens": state.tokens, **_interruptible(run, probe)}
    state.unrecorded = None
    run.step_timer = StepTimer()
    if row:
        run.recorder.record(state.step, row)
    _tell_of_failed_save(run, run.saver.amend(state))
    if "valid/loss" in row:
        run.recorder.plot()


def _interruptible(run: Run, work: Callable[[Pause], T]) -> T:
    """Run an evaluation or a probe. If the ranks agree to leave the loop meanwhile, its time counts as lost."""
    goodput = run.recorder.goodput
    before_s = goodput.eval_s
    try:
        return work(partial(_pause, run))
    except _LoopEndedError:
        goodput.add_time("eval_s")
        goodput.lost_s += goodput.eval_s - before_s
        goodput.eval_s = before_s
        raise
    finally:
        goodput.add_time("eval_s")


def _pause(run: Run, trouble: XLPretrainError | None) -> None:
    """Agree between two batches of an evaluation, as at a step boundary. Every rank calls it; see `Pause`."""
    run.watchdog.progress()
    run.pending_error = trouble
    _act_on(run, _agree(run, [], reason=run.stop.reason()), before="eval_s")


def _due_evaluation(run: Run) -> Callable[[Pause], EvalResult] | None:
    return run.evaluate if _due(run, run.config.eval.every_steps) else None


def _due_probe(run: Run) -> Callable[[Pause], Metrics] | None:
    probe = run.config.eval.probe
    return run.probe if probe is not None and _due(run, probe.every_steps) else None


def _is_logged(run: Run, step: int) -> bool:
    return step == run.max_steps or step % run.config.log.every_steps == 0


def _due(run: Run, every_steps: int) -> bool:
    return run.state.step == run.max_steps or run.state.step % every_steps == 0
