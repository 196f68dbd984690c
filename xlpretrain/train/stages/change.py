"""The change of a run's stage: its data, micro-batches, and the division of its streams among the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages
from xlpretrain.config.stages import dotted_objective, stage_objective
from xlpretrain.data.samples import SampleSource, TrainSamples
from xlpretrain.data.skip_windows import SkippedWindows, Window
from xlpretrain.engine.transfers.place_memory import join_memory, place_memory
from xlpretrain.train.run import Run
from xlpretrain.train.stages.moves import Division, divide, rearrange
from xlpretrain.train.throughput import StepTimer


def change_stage(run: Run) -> None:
    """Enter the stage of this step, if another one was trained until now, and print it. Every rank must call it.

    The streams' memories and the callbacks' states of them go along.
    """
    stages, number = run.stages, run.stages.index(run.state.step)
    if number == run.stage:
        return
    before, now = stages.configs[run.stage], stages.configs[number]
    if (before.global_batch_size, before.micro_batch_size) == (now.global_batch_size, now.micro_batch_size):
        _read_on(run, run.loader.micro_batches)
        run.recorder.print(_describe(run, before))
        return
    held = divide(before.group_sizes, stages.num_streams, distributed.world_size())
    active = run.stream_ranges[: len(before.group_sizes)]
    memory = join_memory([part.cpu() for part in run.memory], active, run.loader.micro_batches)
    states = run.callbacks.stream_states(run.streams)
    enter_stage(run, held, [*memory, *run.resting.values()], states)
    run.recorder.print(_describe(run, before))


def enter_stage(run: Run, held: Division, memory: Sequence[Tensor], stream_states: Mapping[str, Tensor]) -> None:
    """Enter the stage of the run's step, with these memories and states of streams. Every rank must call it.

    Args:
        held: the streams of each rank that `memory` (on the CPU, by range) and `stream_states` are of.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    config = run.stages.at(run.state.step)
    wanted, num_groups = divide(config.group_sizes, run.stages.num_streams, world_size), len(config.group_sizes)
    run.stream_ranges = wanted[rank]
    micro_batches = config.micro_batches(rank, world_size)
    run.engine.set_num_micro_batches(len(micro_batches))
    moved = rearrange(memory, held, wanted, dim=1)
    run.resting = dict(zip(wanted[rank][num_groups:], moved[num_groups:], strict=True))
    run.memory = place_memory(
        run.engine,
        moved[:num_groups],
        ranges=wanted[rank][:num_groups],
        micro_batches=micro_batches,
        on_host=config.engine.memory_device == "host",
    )
    sizes = [len(streams) for streams in held[rank]]
    states = {
        name: torch.cat(rearrange(torch.split(state.cpu(), sizes), held, wanted, dim=0))
        for name, state in stream_states.items()
    }
    if run.context_streams is not None:
        run.context_streams[:] = run.streams
    run.callbacks.load_streams(states)
    _read_on(run, micro_batches)


def _read_on(run: Run, micro_batches: Sequence[range]) -> None:
    """Make the stage of the run's step the current one, and read its data."""
    run.stage = run.stages.index(run.state.step)
    run.config = run.stages.configs[run.stage]
    run.flops_per_token = run.stage_flops[run.stage]
    run.loader = replace(
        run.loader,
        samples=unskipped(run.samples, run.state.skipped_windows, run.stages, run.stage),
        collate=run.collators(run.config),
        micro_batches=micro_batches,
    )
    run.step_timer = StepTimer()


def unskipped(samples: TrainSamples, windows: Sequence[Window], stages: RunStages, stage: int) -> SampleSource:
    """The samples without skipped windows.

    After a window, the memory counts as many tokens a step as the shortest sample of any stage so far has, so that it
    never reaches into the window.
    """
    of_stages = [
        [group.objective.new_tokens for group in config.stream_groups] for config in stages.configs[: stage + 1]
    ]
    new_tokens = [min(of_part) for of_part in zip(*of_stages, strict=True)]
    return SkippedWindows(samples, windows, new_tokens) if windows else samples


def _describe(run: Run, before: RunConfig) -> str:
    """One line: the step, what changes, tokens that are skipped, and what happens to memories."""
    changed = "; ".join(f"{key}: {then!r} -> {now!r}" for key, then, now in _differences(before, run.config))
    said = f"step {run.state.step:,}: next stage: {changed or 'nothing changes'}"
    if skipped := run.samples.skipped_tokens(run.stage):
        said += f"; {skipped:,} tokens are skipped"
    if run.config.model.mem_len:
        said += "; memories go on" + (", except those of streams that skip tokens" if skipped else "")
    return said


def _differences(before: RunConfig, now: RunConfig) -> list[tuple[str, Any, Any]]:
    """The keys that differ between two stages, with their values."""
    found: list[tuple[str, Any, Any]] = []
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    for key in ("global_batch_size", "micro_batch_size"):
        found.append((key, old[key], new[key]))
    of_old, of_new = (dotted_objective(stage_objective(each["objective"])) for each in (old, new))
    found += [(key, then, of_new.get(key)) for key, then in of_old.items()]
    for section in ("optimizer", "data"):
        found += [(f"{section}.{key}", then, new[section].get(key)) for key, then in old[section].items()]
    return [(key, then, after) for key, then, after in found if then != after]
