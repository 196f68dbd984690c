"""One update of a model from its micro-batches, shared by the training loop, the probe and the engine tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlpretrain.engine.base import Engine
from xlpretrain.engine.determinism import explain_refusals
from xlpretrain.models.pretraining_model import Batch, Loss


@dataclass(frozen=True)
class StepResult:
    """The outcome of one update on this rank.

    sums: the sum of each loss term over the micro-batches. grad_norm: global, before clipping. memory: per micro-batch,
    for the next step; the previous step's if the norm is not finite, because NaN would stay in the memory.
    """

    sums: dict[str, Tensor]
    grad_norm: float
    memory: list[Tensor]


@explain_refusals
def train_step(
    engine: Engine,
    batches: Sequence[Batch],
    memory: Sequence[Tensor],
    *,
    counts: Mapping[str, int],
    lr: float,
    seed: int,
    after_forward: Callable[[int, Loss], None] | None = None,
) -> StepResult:
    """Run one training step. Every rank must call it.

    Args:
        batches: this rank's micro-batches, as many as `memory`.
        memory: [L, B, M, D] for each micro-batch.
        counts: number of predictions of each loss term over all micro-batches and ranks.
        seed: dropout seed, set per step so that no generator state needs saving and evaluation cannot affect training.
        after_forward: called with the index and the loss of each micro-batch before its backward pass.
    """
    torch.manual_seed(seed)
    engine.start_step(counts)
    sums = {term: torch.zeros((), device=engine.device) for term in counts}
    new_memory: list[Tensor] = []
    for number, (batch, remembered) in enumerate(zip(batches, memory, strict=True)):
        loss, kept = engine.forward(batch.to(engine.device), remembered)
        sums = {term: sums[term] + loss.sums[term].detach() for term in sums}
        if after_forward is not None:
            after_forward(number, loss)
        engine.backward(loss)
        new_memory.append(kept)
    grad_norm = engine.update(lr)
    return StepResult(sums, grad_norm, new_memory if math.isfinite(grad_norm) else list(memory))
