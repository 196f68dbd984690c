"""Errors of a rank that ran out of memory, explained by the run's plan."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xlpretrain import distributed
from xlpretrain.config import origin
from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine.config import DeepSpeedConfig
from xlpretrain.errors import OutOfMemoryError
from xlpretrain.planning.activations import DeviceKind
from xlpretrain.planning.fitting.memory_limits import MemoryLimit
from xlpretrain.planning.memory import MemoryPlan, MemoryPlanner, candidates, readable


def is_out_of_memory(error: BaseException) -> bool:
    """True for an error that says that a GPU or the CPU has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "bad_alloc")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@contextmanager
def explained_if_out_of_memory(config: RunConfig, limit: MemoryLimit, *, device: torch.device) -> Iterator[None]:
    """Turn errors of a block that ran out of memory into an `OutOfMemoryError` that names the plan and what would fit.

    limit: what this process could take before the run was set up.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        traceback.clear_frames(error.__traceback__)  # they hold what the step has allocated
        gc.collect()
        kind: DeviceKind = "cuda" if device.type == "cuda" else "cpu"
        try:
            vocab_size = origin.open_data(config, config.folder).tokenizer.vocabulary.size
            advice = explanation(config, limit, vocab_size=vocab_size, num_ranks=distributed.world_size(), device=kind)
        except Exception as failure:  # above all, memory for the explanation itself
            advice = f"set a smaller micro_batch_size (the plan could not be made: {failure})"
        raise OutOfMemoryError(f"rank {distributed.rank()} ran out of memory: {first}\n{advice}") from error


def explanation(config: RunConfig, limit: MemoryLimit, *, vocab_size: int, num_ranks: int, device: DeviceKind) -> str:
    """The plan of one rank by part, the limit, and settings that fit."""
    planner = MemoryPlanner(config, vocab_size=vocab_size, num_ranks=num_ranks, device=device)
    sizes = candidates(config, num_ranks=num_ranks)
    current = config.micro_batch_size if isinstance(config.micro_batch_size, int) else sizes[0]
    plan = planner.at(current)

    def fits(other: MemoryPlan) -> bool:
        return limit.fits(other) and other.peak < plan.peak

    found = []
    smaller = next((size for size in sizes if size < current and fits(planner.at(size))), None)
    if smaller is not None:
        found.append(f"micro_batch_size={smaller} ({readable(planner.at(smaller).peak)})")
    for changed, keys in _other_engines(config):
        other = MemoryPlanner(changed, vocab_size=vocab_size, num_ranks=num_ranks, device=device).at(current)
        if fits(other):
            found.append(f"{keys} ({readable(other.peak)})")
    fix = f"a setting that fits by the plan: {' or '.join(found)}"
    if not found:
        smallest = planner.at(1)
        fix = (
            f"by the plan no micro_batch_size, checkpointing or ZeRO stage alone fits (micro_batch_size=1 takes"
            f" {readable(smallest.peak)}): use more ranks, a smaller model, or combine them"
        )
    return (
        f"the plan of a rank with micro_batch_size {current}:\n{plan.describe()}\n  limit: {limit.describe()}\n  {fix}"
    )


def _other_engines(config: RunConfig) -> Iterator[tuple[RunConfig, str]]:
    """The same run with settings of the engine that take less memory, and these settings."""
    engine = config.engine
    if not engine.activation_checkpointing:
        changed = engine.model_copy(update={"activation_checkpointing": True})
        yield config.model_copy(update={"engine": changed}), "engine.activation_checkpointing=true"
    if isinstance(engine, DeepSpeedConfig):
        for stage in range(max(engine.actual_stage, 1) + 1, 4):
            changed = engine.model_copy(update={"zero_stage": stage})
            yield config.model_copy(update={"engine": changed}), f"engine.zero_stage={stage}"
