"""The module that an engine trains (a backbone and a head), with its input and output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden
from xlpretrain.models.parts.clusters import TargetClusters

_T = TypeVar("_T")


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    targets: for a term that predicts tokens, the target tokens under the term's name and, under `<term>_positions`,
    their ascending flat indices sample * width + position, in the query stream if there is one, else in the tokens.
    counts: number of predictions of each loss term in the micro-batch (or the sum of their weights), known before the
        forward pass.
    part_len: read the samples in parts of this length, each with the memory of those before it, from an empty memory
        on; hidden states are those of all parts. None: as one part, with the memory of the stream.
    clusters: the clusters of the targets under the term's name, for an adaptive softmax; missing ones are found in the
        forward pass, for which the host waits for the device.
    part: index of the part of a mixed objective that the samples belong to.
    """

    inputs: BackboneInput
    targets: Mapping[str, Tensor]
    counts: Mapping[str, int | float]
    clusters: Mapping[str, TargetClusters] = field(default_factory=dict)
    part_len: int | None = None
    part: int = 0

    def of_part(self, name: str) -> Batch:
        """The same inputs with the targets of one part of a mixed objective, under its own names."""

        def own(values: Mapping[str, _T]) -> dict[str, _T]:
            prefix = f"{name}/"
            return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}

        return Batch(self.inputs, own(self.targets), own(self.counts), own(self.clusters), self.part_len)

    def samples_of(self, term: str) -> Int[Tensor, " N"]:
        """The sample index of each prediction of a term that predicts tokens."""
        places = self.inputs.tokens if self.inputs.target_positions is None else self.inputs.target_positions
        return self.targets[f"{term}_positions"] // max(places.shape[1], 1)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor replaced by `change(tensor)`."""
        targets = {name: change(tensor) for name, tensor in self.targets.items()}
        clusters = {name: found.map(change) for name, found in self.clusters.items()}
        return Batch(self.inputs.map(change), targets, self.counts, clusters, self.part_len, self.part)


@dataclass(frozen=True)
class TokenScores:
    """The result of each prediction of one term, ordered by sample and position."""

    samples: Int[Tensor, " N"]
    """The sample index of each prediction, ascending."""
    nll: Float[Tensor, " N"]
    """Loss of each prediction in nats, detached."""
    correct: Bool[Tensor, " N"] | None
    """True where no other answer was more likely; None in training mode."""


@dataclass(frozen=True)
class Loss:
    """Summed losses, never means: the engine divides once, by the counts of the whole step."""

    sums: Mapping[str, Float[Tensor, ""]]
    """Sum per term, in fp32 nats."""
    scores: Mapping[str, TokenScores] = field(default_factory=dict)
    """Individual predictions per term, for evaluation."""
    outputs: Float[Tensor, "B ..."] | None = None
    """The fp32 outputs for each sample, in evaluation mode, if metrics are computed from them."""


class Head(nn.Module, ABC):
    """Maps hidden states and targets to a loss."""

    @abstractmethod
    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of each term."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Matrix-product FLOPs of forward and backward, divided by the tokens of a sample."""


class PretrainingModel(nn.Module):
    """A backbone and a head, trained by an engine."""

    def __init__(self, backbone: Backbone, head: Head):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        """The loss of one micro-batch and its streams' next memory."""
        if batch.part_len is not None:
            return self.head(self.read_parts(batch, mems.shape[2]), batch), mems
        num_rows = len(batch.inputs.tokens)
        if num_rows != mems.shape[1]:  # a task with several rows per sample, which have no memory
            hidden, _ = self.backbone(batch.inputs, mems.new_zeros(len(mems), num_rows, 0, mems.shape[3]))
            return self.head(hidden, batch), mems
        hidden, mems = self.backbone(batch.inputs.with_memory_of(mems.shape[2]), mems)
        return self.head(hidden, batch), mems

    def read_parts(self, batch: Batch, mem_len: int) -> Hidden:
        """The hidden states of samples read in parts. Gradients stay within a part: the memory is detached."""
        inputs, length = batch.inputs, batch.part_len
        assert length is not None and inputs.attention_mask is not None and inputs.segments is not None
        mems, hidden = self.backbone.empty_memory(len(inputs.tokens), mem_len), []
        for start in range(0, inputs.tokens.shape[1], length):
            here, known = slice(start, start + length), min(start, mem_len)
            part = BackboneInput(
                tokens=inputs.tokens[:, here],
                mem_valid_len=torch.full_like(inputs.mem_valid_len, known),
                attention_mask=inputs.attention_mask[:, here],
                segments=inputs.segments[:, here],
                mem_is_full=known == mem_len,
            )
            read, mems = self.backbone(part, mems)
            hidden.append(read.tokens)
        return Hidden(torch.cat(hidden, dim=1))

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """Matrix-product FLOPs of forward and backward for one token of a sample of `seq_len`."""
        return self.backbone.flops_per_token(seq_len, mem_len, num_predictions) + self.head.flops_per_token()
