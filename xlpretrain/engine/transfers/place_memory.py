"""The place of the streams' memory: on the engine's device, or on the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlpretrain.engine.base import Engine
from xlpretrain.engine.transfers.host_memories import HostMemories


def place_memory(
    engine: Engine, memory: Tensor | None, *, mem_len: int, sizes: Sequence[int], on_host: bool
) -> Sequence[Tensor]:
    """Place a rank's memory, zeros if None: one tensor [L, B, M, D] for each micro-batch.

    Args:
        memory: [L, sum(sizes), M, D], on any device.
        sizes: streams of each micro-batch.
        on_host: in host memory instead of the engine's device.
    """
    backbone = engine.model.backbone
    if memory is None and on_host:
        memory = backbone.empty_memory(0, mem_len).cpu()
        memory = memory.new_zeros(()).expand(len(memory), sum(sizes), *memory.shape[2:])
    elif memory is None:
        memory = backbone.empty_memory(sum(sizes), mem_len)
    parts = torch.split(memory, list(sizes), dim=1)
    if on_host:
        return HostMemories(parts, engine.device)
    return [part.to(engine.device) for part in parts]
