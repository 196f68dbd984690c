"""What every training objective is: a window of the data, a collator (CPU, pure) and a head (device) that gives sums.

Shapes: B rows, T new tokens, V vocabulary, D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xlpretrain.data.stream import Row
from xlpretrain.data.tokenizer import Vocabulary
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden
from xlpretrain.schema import Section


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `counts` is how many predictions each loss term has in it, known before the forward pass."""

    inputs: BackboneInput
    targets: Mapping[str, Tensor]
    counts: Mapping[str, int]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        inputs = BackboneInput(**{name: t.to(device, non_blocking=True) for name, t in vars(self.inputs).items()})
        return Batch(inputs, {name: t.to(device, non_blocking=True) for name, t in self.targets.items()}, self.counts)


@dataclass(frozen=True)
class Loss:
    """Sums, never means: the engine divides once, by the counts of the whole step."""

    sums: Mapping[str, Float[Tensor, ""]]
    """Per term, fp32, nats."""
    nll: Float[Tensor, "B P"] | None = None
    """Detached loss of each target in the order of positions, 0 where there is none: for evaluation by document."""


@runtime_checkable
class Collator(Protocol):
    """Rows into a micro-batch: pure, picklable, on the CPU."""

    def __call__(self, rows: Sequence[Row]) -> Batch: ...


class Head(nn.Module, ABC):
    """Hidden states and targets into a loss."""

    @abstractmethod
    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss of each term."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Matrix-product FLOPs of forward and backward for one token."""


class Objective(Section, ABC):
    """The config of an objective, which knows how to build its parts."""

    type: str
    seq_len: int

    needs: ClassVar[frozenset[str]]
    """Of memory, causal, two_stream, bidirectional: what a backbone must provide."""
    terms: ClassVar[tuple[str, ...]]
    """The names of the loss terms."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Tokens in a row, from its first input to its last target."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Tokens by which a stream advances in one row, and by which its memory grows."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term in the step's loss."""
        return dict.fromkeys(self.terms, 1.0)

    @abstractmethod
    def collator(self, vocabulary: Vocabulary) -> Collator:
        """The CPU half."""

    @abstractmethod
    def head(self, backbone: Backbone) -> Head:
        """The device half, for a freshly built backbone."""


class PretrainingModel(nn.Module):
    """A backbone and a head: what an engine trains."""

    def __init__(self, backbone: Backbone, head: Head):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        """The loss of one micro-batch and its streams' next memory."""
        hidden, mems = self.backbone(batch.inputs, mems)
        return self.head(hidden, batch), mems

    def flops_per_token(self, seq_len: int, mem_len: int) -> float:
        """Matrix-product FLOPs of forward and backward for one token."""
        return self.backbone.flops_per_token(seq_len, mem_len) + self.head.flops_per_token()
