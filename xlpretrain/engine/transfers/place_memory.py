"""The place of the streams' memory, on the engine's device or on the host, and its division into micro-batches.

A rank's streams are one or more ranges, and each of its micro-batches is a part of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlpretrain.engine.base import Engine
from xlpretrain.engine.transfers.host_memories import HostMemories


def fresh_memory(engine: Engine, num_streams: int, mem_len: int, *, on_host: bool) -> Tensor:
    """Memory [L, S, M, D] of streams that have read nothing: zeros, which on the host take no space of their own."""
    if not on_host:
        return engine.model.backbone.empty_memory(num_streams, mem_len)
    memory = engine.model.backbone.empty_memory(0, mem_len).cpu()
    return memory.new_zeros(()).expand(len(memory), num_streams, *memory.shape[2:])


def place_memory(
    engine: Engine,
    memory: Sequence[Tensor],
    *,
    ranges: Sequence[range],
    micro_batches: Sequence[range],
    on_host: bool,
) -> Sequence[Tensor]:
    """Place a rank's memory: one tensor [L, B, M, D] for each micro-batch.

    Args:
        memory: [L, S, M, D] for each range of the rank's streams, on any device; M may differ.
        on_host: in host memory instead of the engine's device.
    """
    parts = cut_memory(memory, ranges, micro_batches)
    if on_host:
        return HostMemories(parts, engine.device)
    return [part.to(engine.device) for part in parts]


def cut_memory(memory: Sequence[Tensor], ranges: Sequence[range], micro_batches: Sequence[range]) -> list[Tensor]:
    """Divide the memory of each range, [L, S, M, D], by micro-batches; returns one tensor for each of them."""
    found = []
    for streams in micro_batches:
        i = _range_of(streams, ranges)
        found.append(memory[i][:, streams.start - ranges[i].start : streams.stop - ranges[i].start])
    return found


def join_memory(memory: Sequence[Tensor], ranges: Sequence[range], micro_batches: Sequence[range]) -> list[Tensor]:
    """The memory of each range, joined from its micro-batches, of which each has at least one; may be empty."""
    return [torch.cat(parts, dim=1) for parts in _parts_of_ranges(memory, ranges, micro_batches)]


def memory_by_range(
    memory: Sequence[Tensor], ranges: Sequence[range], micro_batches: Sequence[range]
) -> dict[range, list[Tensor]]:
    """The parts of each range that is not empty, in order; the reverse of `cut_memory`."""
    parts_of_ranges = zip(ranges, _parts_of_ranges(memory, ranges, micro_batches), strict=True)
    return {streams: [part for part in parts if part.shape[1]] for streams, parts in parts_of_ranges if streams}


def _parts_of_ranges(
    memory: Sequence[Tensor], ranges: Sequence[range], micro_batches: Sequence[range]
) -> list[list[Tensor]]:
    """The memories of each range's micro-batches, in order, also of those without streams."""
    found: list[list[Tensor]] = [[] for _ in ranges]
    for i, streams in enumerate(micro_batches):
        found[_range_of(streams, ranges)].append(memory[i])
    return found


def _range_of(streams: range, ranges: Sequence[range]) -> int:
    """The index of the range that a micro-batch is a part of. An empty one is never at the end of another range."""
    return next(i for i in reversed(range(len(ranges))) if ranges[i].start <= streams.start)
