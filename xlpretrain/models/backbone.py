"""The interface of a model to the rest of the project: tokens and memory in, hidden states and the next memory out.

Shapes: B samples, T new tokens, P predictions, M remembered positions, D d_model, L layers with a memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlpretrain.schema import Problem, Section


@dataclass(frozen=True)
class BackboneInput:
    """The input of a backbone for one micro-batch, on the device. None where the objective does not use a field."""

    tokens: Int[Tensor, "B T"]
    mem_valid_len: Int[Tensor, " B"]
    """Number of the M memory positions, counted from the newest, that belong to the sample; the model masks the
    rest."""
    attention_mask: Bool[Tensor, "B T"] | None = None
    """Mask of the tokens present; the others are padding, which no token may attend. None: all are present."""
    segments: Int[Tensor, "B T"] | None = None
    """The segment of each token, 0 being that of the memory too. None: all 0."""
    perm_rank: Int[Tensor, "B T"] | None = None
    """The rank of each token in the factorization: a token attends those of its own rank or lower, a prediction those
    of lower rank than the token it stands at. Tokens of one rank see each other. None: whatever the model does."""
    target_positions: Int[Tensor, "B P"] | None = None
    """The positions whose tokens are predicted without being seen (a second stream, XLNet). None: no second stream."""
    reversed: Bool[Tensor, " B"] | None = None
    """Mask of the samples that are read from right to left: their relative positions change sign. None: no sample."""
    reuse_len: int | None = None
    """Number of leading positions of the sample that enter the memory. None: all."""

    def to(self, device: torch.device) -> BackboneInput:
        """The same input on a device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return BackboneInput(**{**vars(self), **moved})


@dataclass(frozen=True)
class Hidden:
    """The output of a backbone."""

    tokens: Float[Tensor, "B T D"]
    predictions: Float[Tensor, "B P D"] | None = None
    """The second stream, at the positions `predict`."""


class OutputLayer(nn.Module, ABC):
    """Hidden states onto the vocabulary: a full softmax or an adaptive one, tied or not."""

    def forward(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """`score`, as a call that the hooks of ZeRO-3 see, with accuracy in evaluation mode only."""
        return self.token_losses(hidden, targets, accuracy=not self.training)

    @abstractmethod
    def token_losses(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"], *, accuracy: bool
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """-log p(target) in fp32 nats, in the order of the targets; and whether no token is likelier, if asked."""

    @abstractmethod
    def log_probs(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """log p of every token, fp32."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Matrix-product FLOPs of forward and backward for one target (upper bound for an adaptive softmax)."""


class Backbone(nn.Module, ABC):
    """A model without its objective's head."""

    provides: ClassVar[frozenset[str]]
    """Capabilities, among memory, causal, two_stream and bidirectional, that an objective may require."""

    d_model: int

    init_std: float
    """Standard deviation of fresh weights, the backbone's own and those of the heads built on it."""

    activation_checkpointing: bool = False
    """True if backward recomputes each layer instead of keeping its activations; set by the engine."""

    @abstractmethod
    def forward(self, inputs: BackboneInput, mems: Float[Tensor, "L B M D"]) -> tuple[Hidden, Float[Tensor, "L B M D"]]:
        """Hidden states of the new tokens, and the memory for the next sample of the same streams.

        The length of the memory is that of `mems`, whatever the model was trained with; M = 0 is a model without
        memory. The returned memory is detached.
        """

    @abstractmethod
    def empty_memory(self, batch_size: int, mem_len: int) -> Float[Tensor, "L B M D"]:
        """A memory of zeros for `num_rows` streams, in the dtype and on the device of the weights."""

    @abstractmethod
    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """Matrix-product FLOPs of forward and backward for one token, attention included, the head not.

        `num_predictions`: of a second stream, in a row of `seq_len` tokens, which share their cost.
        """

    @abstractmethod
    def output_layer(self) -> OutputLayer:
        """A freshly built projection onto the vocabulary, tied to this model's embedding where its config says so."""


class BackboneConfig(Section, ABC):
    """The keys every model has."""

    type: str
    mem_len: int
    dropout: float

    provides: ClassVar[frozenset[str]]

    def run_problems(self, *, seq_len: int) -> Iterator[Problem]:
        """Yield what contradicts the rest of the config; keys are those of the whole config."""
        yield from ()

    def data_problems(self, *, num_segments: int) -> Iterator[Problem]:
        """Yield what does not fit the samples that an objective makes of the data; keys are those of the whole
        config."""
        yield from ()

    @abstractmethod
    def build(self, vocab_size: int) -> Backbone:
        """The model with freshly drawn weights, from torch's global generator, in fp32."""
