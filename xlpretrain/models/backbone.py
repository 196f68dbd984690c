"""What every model is to the rest of the project: tokens and memory in, hidden states and the next memory out.

Shapes: B rows, T new tokens, M remembered positions, D d_model, L layers with a memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from xlpretrain.schema import Section


@dataclass(frozen=True)
class BackboneInput:
    """What a backbone reads for one micro-batch, on the device."""

    tokens: Int[Tensor, "B T"]
    remembered: Int[Tensor, " B"]
    """How many of the M memory positions, counted from the newest, are the row's own; the model masks the rest."""


@dataclass(frozen=True)
class Hidden:
    """What a backbone computes of it."""

    tokens: Float[Tensor, "B T D"]


class OutputLayer(nn.Module, ABC):
    """Hidden states onto the vocabulary: a full softmax or an adaptive one, tied or not."""

    def forward(self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """`nll`, as a call that the hooks of ZeRO-3 see: what training uses."""
        return self.nll(hidden, targets)

    @abstractmethod
    def nll(self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """-log p(target) in fp32 nats, in the order of the targets."""

    @abstractmethod
    def log_probs(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """log p of every token, fp32."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Matrix-product FLOPs of forward and backward for one target (upper bound for an adaptive softmax)."""


class Backbone(nn.Module, ABC):
    """A model without its objective's head."""

    provides: ClassVar[frozenset[str]]
    """Of memory, causal, two_stream, bidirectional: what an objective may need."""

    d_model: int

    activation_checkpointing: bool = False
    """Whether backward recomputes each layer instead of keeping what it computed; set by the engine."""

    @abstractmethod
    def forward(self, inputs: BackboneInput, mems: Float[Tensor, "L B M D"]) -> tuple[Hidden, Float[Tensor, "L B M D"]]:
        """Hidden states of the new tokens, and the memory for the next row of the same streams.

        The length of the memory is that of `mems`, whatever the model was trained with; M = 0 is a model without
        memory. The returned memory is detached.
        """

    @abstractmethod
    def empty_memory(self, num_rows: int, mem_len: int) -> Float[Tensor, "L B M D"]:
        """A memory of zeros for `num_rows` streams, in the dtype and on the device of the weights."""

    @abstractmethod
    def flops_per_token(self, seq_len: int, mem_len: int) -> float:
        """Matrix-product FLOPs of forward and backward for one token, attention included, the head not."""

    @abstractmethod
    def output_layer(self) -> OutputLayer:
        """A freshly built projection onto the vocabulary, tied to this model's embedding where its config says so."""


class BackboneConfig(Section, ABC):
    """The keys every model has."""

    type: str
    mem_len: int
    dropout: float

    provides: ClassVar[frozenset[str]]

    @abstractmethod
    def build(self, vocab_size: int) -> Backbone:
        """The model with freshly drawn weights, from torch's global generator, in fp32."""
