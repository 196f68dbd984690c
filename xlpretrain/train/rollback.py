"""Rollback to an earlier checkpoint, skipping the data around the step that triggered it."""

from __future__ import annotations

from dataclasses import replace

from xlpretrain import distributed
from xlpretrain.checkpoint.files import list_checkpoints, parse_step, set_aside_newer
from xlpretrain.checkpoint.reader import restore
from xlpretrain.data.skip_windows import add_window, shifted_step
from xlpretrain.engine.transfers.host_memories import HostMemories
from xlpretrain.engine.transfers.place_memory import cut_memory
from xlpretrain.train.callbacks.base import RollBack
from xlpretrain.train.run import Run
from xlpretrain.train.stages.change import enter_stage, unskipped
from xlpretrain.train.throughput import StepTimer


def roll_back(run: Run, request: RollBack) -> None:
    """Return to the newest checkpoint from before the last step's data, and skip that data.

    Every rank must call it, with no save in flight, and save afterwards, so that the skipped windows are on disk.
    """
    then = run.state
    at, _ = shifted_step(then.step - 1, then.skipped_windows)
    _abandon_newer(run, max(then.step - 1 - request.skip_before, 0))
    streams = run.stream_ranges if len(run.stages.firsts) == 1 else run.even_division[distributed.rank()]
    restored = restore(run.folder.checkpoints, run.engine, streams=streams, owner=run.lease.number)
    assert restored is not None, "there was one"
    first, _ = shifted_step(restored.state.step, then.skipped_windows)
    window = (max(first, at - request.skip_before), at + request.skip_after + 1)
    run.state = replace(
        restored.state,
        skipped_windows=add_window(then.skipped_windows, window),
        failed_saves=then.failed_saves,
    )
    if len(run.stages.firsts) > 1:
        run.samples = run.samples.with_windows(run.state.skipped_windows)
        run.callbacks.after_rollback(restored.state.callbacks, {})
        enter_stage(run, run.even_division, restored.memory, restored.stream_states)
    else:
        run.callbacks.after_rollback(restored.state.callbacks, restored.stream_states)
        parts = cut_memory(restored.memory, run.stream_ranges, run.loader.micro_batches)
        if isinstance(run.memory, HostMemories):
            run.memory.refill(parts)
        else:
            run.memory = [part.to(run.engine.device) for part in parts]
        samples = unskipped(run.samples, run.state.skipped_windows, run.stages, 0)
        run.loader = replace(run.loader, samples=samples)
    run.saver.reset_to(run.state.step)
    run.recorder.go_back(run.state)
    run.recorder.print(
        f"step {then.step}: {request.reason}; rolled back to step {run.state.step}, skipping the data of steps"
        f" {window[0]} to {window[1] - 1}"
    )
    run.step_timer = StepTimer()


def _abandon_newer(run: Run, step: int) -> None:
    """Set aside checkpoints newer than `step`; if all are newer, keep the oldest."""
    folder = run.folder.checkpoints

    def abandon() -> None:
        steps = [saved for path in list_checkpoints(folder) if (saved := parse_step(path)) is not None]
        set_aside_newer(folder, max((s for s in steps if s <= step), default=min(steps)))

    distributed.run_on_rank_0(abandon)
