"""Loss spikes: detection, and rolling back to a checkpoint before one without the data around it.

PaLM (arXiv:2204.02311, section 5.1): a run that spikes goes back to a checkpoint before the spike and skips the data
around it; the same data is harmless to another state of the weights, so neither alone is at fault.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.checkpoint.files import list_checkpoints, parse_step, set_aside_newer
from xlpretrain.checkpoint.reader import restore
from xlpretrain.config.sections import SpikeConfig
from xlpretrain.data.skip_windows import SkippedWindows, add_window, shifted_step
from xlpretrain.errors import TrainingError
from xlpretrain.train.run import Run
from xlpretrain.train.throughput import StepTimer


def is_spike(loss: float, recent: Sequence[float], config: SpikeConfig) -> bool:
    """True if `loss` stands out from the losses of the steps before it."""
    if config.threshold is None or len(recent) < config.window:
        return False
    return loss > statistics.median(recent) + config.threshold


def local_loss(run: Run, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> float:
    """This rank's part of the step's loss, where spikes are looked for: reading it waits for the device."""
    if run.config.spike.threshold is None:
        return 0.0
    weights = run.config.objective.weights
    return sum(weights[term] * float(total) / max(counts[term], 1) for term, total in sums.items())


def detect_spike(run: Run, loss: float) -> bool:
    """True if the last step's loss, over all ranks, is a spike; otherwise it joins the losses to compare with."""
    spike, recent = run.config.spike, run.state.recent_losses
    if spike.threshold is None or run.last_losses is None:
        return False
    run.last_losses = None
    if is_spike(loss, recent, spike):
        if run.saver.saved_at is not None:
            return True
        run.recorder.print(f"step {run.state.step}: the loss spikes to {loss:.4f}; no checkpoint to go back to")
    run.state.recent_losses = [*recent, loss][-spike.window :]
    return False


def roll_back(run: Run) -> None:
    """Roll back to the newest checkpoint from before the spike of the last step, and skip the data around it.

    Every rank calls it, with no save in flight, and saves afterwards: what is left out lies in every checkpoint.
    Raises `TrainingError` if that was done too often.
    """
    spike, then = run.config.spike, run.state
    if then.rollbacks >= spike.max_rollbacks:
        raise TrainingError(
            f"the loss spikes at step {then.step}, and all {spike.max_rollbacks} of spike.max_rollbacks are used up:"
            " lower optimizer.lr, look at the data of those steps, leave out more of it (spike.skip_after), or raise"
            " spike.max_rollbacks or spike.threshold, and resume"
        )
    at, _ = shifted_step(then.step - 1, then.skipped_windows)
    _abandon_newer(run, max(then.step - 1 - spike.skip_before, 0))
    restored = restore(run.folder.checkpoints, run.engine, streams=run.streams, owner=run.lease.number)
    assert restored is not None, "there was one"
    first, _ = shifted_step(restored.state.step, then.skipped_windows)
    window = (max(first, at - spike.skip_before), at + spike.skip_after + 1)
    run.state = replace(
        restored.state,
        skipped_windows=add_window(then.skipped_windows, window),
        rollbacks=then.rollbacks + 1,
        recent_losses=then.recent_losses,
        skipped_updates=then.skipped_updates,
        failed_saves=then.failed_saves,
    )
    sizes = [memory.shape[1] for memory in run.memory]
    run.memory = list(torch.split(restored.memory.to(run.engine.device), sizes, dim=1))
    samples = SkippedWindows(run.samples, run.state.skipped_windows, run.config.objective.new_tokens)
    run.loader = replace(run.loader, samples=samples)
    run.saver.reset_to(run.state.step)
    run.recorder.go_back(run.state)
    run.recorder.print(
        f"step {then.step}: the loss spikes; back to step {run.state.step}, and on without the data of steps"
        f" {window[0]} to {window[1] - 1}"
    )
    run.step_timer = StepTimer()


def _abandon_newer(run: Run, step: int) -> None:
    """Put checkpoints of later steps away; where none is as old as `step`, those after the oldest one."""
    folder = run.folder.checkpoints

    def abandon() -> None:
        steps = [saved for path in list_checkpoints(folder) if (saved := parse_step(path)) is not None]
        set_aside_newer(folder, max((s for s in steps if s <= step), default=min(steps)))

    distributed.run_on_rank_0(abandon)
