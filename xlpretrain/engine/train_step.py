"""One update of a model from its micro-batches, shared by the training loop, the probe and the engine tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from xlpretrain.engine.base import Engine
from xlpretrain.engine.determinism import explain_refusals
from xlpretrain.engine.transfers.host_copy import HostCopy
from xlpretrain.engine.transfers.host_memories import HostMemories
from xlpretrain.models.pretraining_model import Batch, Loss
from xlpretrain.profiling.names import BACKWARD, FORWARD, UPDATE
from xlpretrain.profiling.ranges import named


@dataclass(frozen=True)
class StepResult:
    """The outcome of one update on this rank.

    sums: the sum of each loss term over the micro-batches, on the device. host_sums: the same for the host, which waits
    only for the forward passes when it reads them. grad_norm: global, before clipping. memory: per micro-batch, for the
    next step; the previous step's if the norm is not finite, because NaN would stay in the memory.
    """

    sums: dict[str, Tensor]
    host_sums: dict[str, HostCopy]
    grad_norm: HostCopy
    memory: Sequence[Tensor]


@explain_refusals
def train_step(
    engine: Engine,
    batches: Sequence[Batch],
    memory: Sequence[Tensor],
    *,
    counts: Mapping[str, int | float],
    lr: float,
    seed: int,
    after_forward: Callable[[int, Loss], None] | None = None,
) -> StepResult:
    """Run one training step, without waiting for the device if the engine does not. Every rank must call it.

    Args:
        batches: this rank's micro-batches, as many as `memory`.
        memory: [L, B, M, D] for each micro-batch, on the device or as `HostMemories`.
        counts: number of predictions of each loss term over all micro-batches and ranks.
        seed: dropout seed, set per step so that no generator state needs saving and evaluation cannot affect training.
        after_forward: called with the index and the loss of each micro-batch before its backward pass.
    """
    torch.manual_seed(seed)
    engine.start_step(counts)
    sums = {term: torch.zeros((), device=engine.device) for term in counts}
    host_sums: dict[str, HostCopy] = {}
    on_host = memory if isinstance(memory, HostMemories) else None
    new_memory: list[Tensor] = []
    for number, batch in enumerate(batches):
        remembered = memory[number] if on_host is None else on_host.fetch(number)
        with named(FORWARD):
            loss, kept = engine.forward(batch.to(engine.device), remembered)
        sums = {term: sums[term] + loss.sums[term].detach() for term in sums}
        if after_forward is not None:
            after_forward(number, loss)
        if number == len(batches) - 1:
            host_sums = {term: HostCopy(total) for term, total in sums.items()}
        if on_host is None:
            new_memory.append(kept)
        else:
            on_host.keep(number, kept)
        with named(BACKWARD):
            engine.backward(loss)
    with named(UPDATE):
        norm = engine.update(lr)
    grad_norm = HostCopy(norm)
    if on_host is not None:
        on_host.advance_if_finite(grad_norm)
        return StepResult(sums, host_sums, grad_norm, on_host)
    if norm.device.type == "cpu":
        new_memory = new_memory if math.isfinite(norm) else list(memory)
    else:
        select_memory(norm < math.inf, new_memory, memory)
    return StepResult(sums, host_sums, grad_norm, new_memory)


@torch.no_grad()
def select_memory(is_finite: Bool[Tensor, ""], new: Sequence[Tensor], previous: Sequence[Tensor]) -> None:
    """Overwrite each new memory with the previous one if a step was not finite; decided on the device.

    Takes no memory of its own. The new and the previous memory may not share storage.
    """
    for mine, before in zip(new, previous, strict=True):
        torch.where(is_finite, mine, before, out=mine)
