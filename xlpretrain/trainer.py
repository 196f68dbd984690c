"""The training loop.

    for each step: agree with the other ranks (counts, stop, trouble, saves), begin to save if due, put the
    micro-batches through the engine, update once, then log and evaluate if due.

Everything else has a home elsewhere: `build.py` puts a `Run` together, `__main__.py` starts it on each rank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xlpretrain import checkpoint, distributed
from xlpretrain.best import is_over, must_save, note
from xlpretrain.corpus_losses import add_losses, corpus_metrics
from xlpretrain.data.order import mix
from xlpretrain.errors import CheckpointError, TrainingError, XLPretrainError
from xlpretrain.metrics import Metrics, Stopwatch, peak_memory_bytes
from xlpretrain.objectives.objective import Batch
from xlpretrain.rollback import found_spike, go_back, part_of_loss
from xlpretrain.run import Run
from xlpretrain.stopping import STOP_REASONS, StopReason


@dataclass(frozen=True)
class Agreement:
    """What all ranks hold to be true at a step boundary."""

    counts: dict[str, int]
    damaged_rows: int
    stop: StopReason | None
    saves: checkpoint.Votes
    spike: bool


def train(run: Run) -> StopReason | None:
    """Train until `max_steps`, or until something asks to stop; a checkpoint of the last step is then on the disk.

    Every rank calls it. Returns why it stopped early, if it did. Raises `XLPretrainError` on every rank where one of
    them met the user's mistake (a damaged shard, a disk too full for the last checkpoint), with its message.
    """
    with run.stop.listening(), closing(run.saver):
        try:
            stopped = _steps(run)
            _save_the_last(run)
        except XLPretrainError:
            _tell_of_failed_save(run, run.saver.wait())  # all ranks are here, and what is being written is worth having
            raise
    return stopped


def _steps(run: Run) -> StopReason | None:
    """Train until `max_steps`, or until the ranks agree to stop: returns why. After a loss spike, go back first."""
    while (ended := _steps_until_spike(run)) == "spike":
        _tell_of_failed_save(run, run.saver.wait())
        go_back(run)
        begin_to_save(run)
    return ended


def _steps_until_spike(run: Run) -> StopReason | Literal["spike"] | None:
    """Train until `max_steps`, or until the ranks agree to stop, or that the last step's loss was a spike."""
    stopped: StopReason | None = None
    with closing(run.loader.steps(start=run.state.step)) as batches_of_steps:
        while run.state.step < run.max_steps and not is_over(run):
            batches = _fetch(run, batches_of_steps)
            agreed = _agree(run, batches)
            _tell_of_failed_save(run, run.saver.conclude(agreed.saves))
            if agreed.spike:
                return "spike"
            if agreed.stop:
                stopped = agreed.stop
                break
            if agreed.saves.writing and must_save(run):
                _tell_of_failed_save(run, run.saver.wait())
            if must_save(run) or (agreed.saves.due and not agreed.saves.writing):
                begin_to_save(run)
            if agreed.damaged_rows:
                _tell_of_damage(run, agreed.damaged_rows)
            sums, grad_norm = _step(run, batches, agreed.counts)
            run.watchdog.progress()
            run.state.step += 1
            run.state.tokens += run.config.tokens_per_step
            _count_bad_numbers(run, grad_norm)
            run.last_losses = part_of_loss(run, sums, agreed.counts)
            _record(run, sums, agreed.counts, grad_norm)
            _refuse_bad_numbers(run)
    return stopped


def begin_to_save(run: Run, *, behind: bool = True) -> None:
    """Copy the state of this step; the rest happens behind the loop. Every rank calls it, none of them writing."""
    run.recorder.goodput.spent("step_s")
    memory = torch.cat(run.mems, dim=1)
    run.saver.start(run.state, run.engine, streams=run.streams, memory=memory, behind=behind)
    run.recorder.goodput.spent("save_s")


def _save_the_last(run: Run) -> None:
    """See this step on the disk. Raises `CheckpointError`, on every rank, if that fails."""
    _tell_of_failed_save(run, run.saver.wait())
    if run.saver.saved_at != run.state.step:
        begin_to_save(run, behind=False)
        if failure := run.saver.wait():
            raise CheckpointError(failure)
    run.recorder.goodput.spent("save_s")


def _tell_of_failed_save(run: Run, failure: str | None) -> None:
    """Training goes on without it: the last good checkpoint stays, and there will be another."""
    if failure is not None:
        run.state.failed_saves += 1
        run.recorder.say(f"{failure}; training goes on, and saves again later")


def _fetch(run: Run, batches_of_steps: Iterator[list[Batch]]) -> list[Batch]:
    """The next step's micro-batches; none if this rank's data is damaged, which it then keeps as its trouble."""
    run.recorder.goodput.spent("step_s")
    started = time.perf_counter()
    try:
        return next(batches_of_steps)
    except XLPretrainError as error:
        run.trouble = error
        return []
    finally:
        run.watch.data_wait_s += time.perf_counter() - started
        run.recorder.goodput.spent("data_wait_s")


def _agree(run: Run, batches: list[Batch]) -> Agreement:
    """One small all-reduce: the step's counts per loss term, whether to stop, trouble on a rank, and its saves."""
    terms = run.config.objective.terms
    reason = run.stop.reason()
    values = [
        *(sum(batch.counts[term] for batch in batches) for term in terms),
        *(reason == known for known in STOP_REASONS),
        len(run.loader.damage.get(run.state.step, ())),
        run.trouble is not None,
        run.last_losses or 0.0,
        *run.saver.votes(run.state.step),
    ]
    numbers = iter(distributed.all_reduce_sum(values))
    counts = {term: int(next(numbers)) for term in terms}
    asked = [known for known in STOP_REASONS if next(numbers)]
    damaged_rows = int(next(numbers))
    if next(numbers):
        _share_trouble(run)
    spike = found_spike(run, next(numbers))
    return Agreement(counts, damaged_rows, asked[0] if asked else None, checkpoint.Votes(*numbers), spike)


def _tell_of_damage(run: Run, num_rows: int) -> None:
    """Count the rows of this step that are left out, on every rank, and say which blocks they are of, once each."""
    run.state.damaged_rows += num_rows
    for messages in distributed.gather_objects(run.loader.damage.pop(run.state.step, [])):
        for message in messages:
            if message not in run.damage_told:
                run.damage_told.add(message)
                run.recorder.say(f"going on without the rows of a block: {message}")


def _share_trouble(run: Run) -> None:
    """Raise the first rank's trouble on every rank, if there is any."""
    for error in distributed.gather_objects(run.trouble):
        if error is not None:
            raise error


def _step(run: Run, batches: list[Batch], counts: dict[str, int]) -> tuple[dict[str, Tensor], float]:
    """One update. Returns this rank's sum of each loss term and the global gradient norm before clipping."""
    config, engine = run.config, run.engine
    # Dropout depends on nothing but (seed, step, rank): nothing to save, and evaluation cannot disturb it.
    torch.manual_seed(mix(config.seed, run.state.step, distributed.rank()))
    engine.start_step(counts)
    sums = {term: torch.zeros((), device=engine.device) for term in counts}
    mems: list[Tensor] = []
    logged = _is_logged(run, run.state.step + 1)
    if logged:
        run.predictions.count(batches)
    for number, (batch, remembered) in enumerate(zip(batches, run.mems, strict=True)):
        loss, memory = engine(batch.to(engine.device), remembered)
        engine.backward(loss)
        if logged:
            add_losses(run, number, loss)
        mems.append(memory)
        sums = {term: sums[term] + loss.sums[term].detach() for term in sums}
    grad_norm = engine.step(config.optimizer.lr * config.schedule.ratio(run.state.step))
    if math.isfinite(grad_norm):
        run.mems = mems  # else they may hold NaN, which would never leave them: keep the ones before
    run.watch.steps += 1
    return sums, grad_norm


def _count_bad_numbers(run: Run, grad_norm: float) -> None:
    """Count a step whose update was skipped."""
    if math.isfinite(grad_norm):
        run.state.nonfinite_in_a_row = 0
        return
    run.state.skipped_updates += 1
    run.state.nonfinite_in_a_row += 1
    run.recorder.say(f"step {run.state.step}: loss or gradient is not finite; no update was made")


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
    """Log and evaluate, if due."""
    config, state = run.config, run.state
    last = state.step == run.max_steps
    metrics: Metrics = {}
    if _is_logged(run, state.step):
        losses = dict(zip(sums, distributed.all_reduce_sum([float(s) for s in sums.values()]), strict=True))
        means = {term: losses[term] / counts[term] if counts[term] else 0.0 for term in losses}
        weights = config.objective.weights
        metrics |= {
            "tokens": state.tokens,
            "train/loss": sum(weights[term] * means[term] for term in means),
            "train/lr": config.optimizer.lr * config.schedule.ratio(state.step - 1),
            "train/grad_norm": grad_norm,
            **{f"train/loss/{term}": mean for term, mean in means.items()},
            "data/epoch": state.step / run.rows.steps_per_epoch,
            **corpus_metrics(run),
            **run.predictions.metrics(is_last=last, warn=run.recorder.say),
            "events/skipped_updates": state.skipped_updates,
            "events/failed_saves": state.failed_saves,
            "events/damaged_rows": state.damaged_rows,
            "events/rollbacks": state.rollbacks,
            "events/skipped_steps": sum(last - first for first, last in state.skipped_windows),
            "memory/peak_bytes": peak_memory_bytes(run.engine.device),
            **run.watch.lap(
                tokens_per_step=config.tokens_per_step,
                flops_per_token=run.flops_per_token,
                peak_flops=run.peak_flops,
            ),
        }
    run.recorder.goodput.spent("step_s")
    if run.evaluate is not None and (last or _due(run, config.eval.every_steps)):
        found = run.evaluate()
        note(run, found)
        metrics |= {"tokens": state.tokens, **found.metrics()}
        run.watch = Stopwatch()
        run.recorder.goodput.spent("eval_s")
    if run.probe is not None and config.eval.probe and (last or _due(run, config.eval.probe.every_steps)):
        metrics |= {"tokens": state.tokens, **run.probe()}
        run.watch = Stopwatch()
        run.recorder.goodput.spent("eval_s")
    if metrics:
        run.recorder.record(state.step, metrics)
    if "valid/loss" in metrics:
        run.recorder.plot()


def _is_logged(run: Run, step: int) -> bool:
    return step == run.max_steps or step % run.config.log.every_steps == 0


def _due(run: Run, every_steps: int) -> bool:
    return run.state.step % every_steps == 0
