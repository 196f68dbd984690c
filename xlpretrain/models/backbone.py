"""The backbone interface: tokens and memory in, hidden states and the next memory out.

Shapes: B samples, T new tokens, P predictions, M memory positions, D d_model, L layers with a memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlpretrain.models.parts.clusters import TargetClusters
from xlpretrain.schema import Problem, Section


@dataclass(frozen=True)
class BackboneInput:
    """The input of a backbone for one micro-batch, on the device. Fields not used by the objective are None."""

    tokens: Int[Tensor, "B T"]
    mem_valid_len: Int[Tensor, " B"]
    """Number of memory positions, counted from the newest, that belong to the sample; the model masks the others."""
    attention_mask: Bool[Tensor, "B T"] | None = None
    """True for real tokens, False for padding, which no token may attend. None: no padding."""
    valid_at: Int[Tensor, " V"] | None = None
    """The places sample * T + position of the real tokens, ascending, as found on the host: their number tells without
    a question to the device that there is no padding. None: unknown."""
    valid_from: Int[Tensor, " B+1"] | None = None
    """With `valid_at`: the index there of each sample's first token, then the number of tokens; int32."""
    segments: Int[Tensor, "B T"] | None = None
    """The segment id of each token; the memory has segment 0. None: all 0."""
    perm_rank: Int[Tensor, "B T"] | None = None
    """The rank of each token in the factorization order: a token attends tokens of its own rank or lower, a prediction
    attends tokens of lower rank than the token at its position. None: the model's default order."""
    target_positions: Int[Tensor, "B P"] | None = None
    """The positions whose tokens are predicted by a second stream that does not see them (XLNet). None: no second
    stream."""
    reversed: Bool[Tensor, " B"] | None = None
    """True for samples read from right to left: their relative positions change sign. None: no such sample."""
    causal: bool = False
    """True if no token may attend a later one. Models that are always causal ignore it."""
    every_query_sees: bool = False
    """True if the host knows that every query whose hidden state is used may attend a key. False: unknown."""
    reuse_len: int | None = None
    """Number of leading positions of the sample that enter the memory. None: all."""
    shortest_memory: int | None = None
    """The smallest `mem_valid_len`, kept on the host by `map`. None: not known without waiting for the device."""
    mem_is_full: bool = False
    """True if every memory position is known to belong to its sample, so that none has to be zeroed."""

    def map(self, change: Callable[[Tensor], Tensor]) -> BackboneInput:
        """The same input with every tensor replaced by `change(tensor)`."""
        changed = {k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        shortest = self.shortest_memory
        if shortest is None and self.mem_valid_len.device.type == "cpu" and len(self.mem_valid_len):
            shortest = int(self.mem_valid_len.min())
        return BackboneInput(**{**vars(self), **changed, "shortest_memory": shortest})

    def with_memory_of(self, mem_len: int) -> BackboneInput:
        """The same input for a memory of `mem_len` positions: `mem_is_full` says whether all samples use all of it."""
        is_full = self.shortest_memory is not None and self.shortest_memory >= mem_len
        return replace(self, shortest_memory=None, mem_is_full=is_full)


@dataclass(frozen=True)
class Hidden:
    """The output of a backbone."""

    tokens: Float[Tensor, "B T D"]
    predictions: Float[Tensor, "B P D"] | None = None
    """Hidden states of the second stream, at `target_positions`."""


class OutputLayer(nn.Module, ABC):
    """Projection of hidden states onto the vocabulary: a full or adaptive softmax, tied or not."""

    def forward(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"], clusters: TargetClusters | None = None
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """Call `token_losses` as a forward pass, which ZeRO-3's hooks require; accuracy only in evaluation mode.

        clusters: the targets' clusters, used by an adaptive softmax.
        """
        return self.token_losses(hidden, targets, accuracy=not self.training)

    @abstractmethod
    def token_losses(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"], *, accuracy: bool
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """-log p(target) in fp32 nats, in the order of the targets; with `accuracy`, also True where no other token is
        more likely, else None."""

    @abstractmethod
    def log_probs(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """log p of every token, fp32."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Matrix-product FLOPs of forward and backward for one target (upper bound for an adaptive softmax)."""


class Backbone(nn.Module, ABC):
    """A model without its objective's head."""

    provides: ClassVar[frozenset[str]]
    """Capabilities that an objective may require: memory, causal, two_stream, bidirectional."""

    d_model: int

    init_std: float
    """Standard deviation of initial weights, for the backbone and the heads built on it."""

    cluster_edges: tuple[int, ...] = ()
    """First token of each cluster of the output layer's adaptive softmax, and the size of the vocabulary; empty without
    one."""

    activation_checkpointing: bool = False
    """True to recompute each layer in the backward pass instead of keeping its activations; set by the engine."""

    @abstractmethod
    def forward(self, inputs: BackboneInput, mems: Float[Tensor, "L B M D"]) -> tuple[Hidden, Float[Tensor, "L B M D"]]:
        """Hidden states of the new tokens, and the memory for the next sample of the same streams.

        The memory length is that of `mems`, whatever length the model was trained with; M = 0 means no memory. The
        returned memory is detached.
        """

    @abstractmethod
    def empty_memory(self, batch_size: int, mem_len: int) -> Float[Tensor, "L B M D"]:
        """A memory of zeros for `batch_size` streams, with the dtype and device of the weights."""

    @abstractmethod
    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """Matrix-product FLOPs of forward and backward for one token, including attention but not the head.

        num_predictions: predictions of a second stream per sample of `seq_len` tokens; their cost is spread over the
        tokens.
        """

    @abstractmethod
    def output_layer(self) -> OutputLayer:
        """Build a new projection onto the vocabulary, tied to this model's embedding if the config says so."""


class BackboneConfig(Section, ABC):
    """The keys common to all models."""

    type: str
    mem_len: int
    dropout: float

    provides: ClassVar[frozenset[str]]

    def run_problems(self, *, seq_len: int) -> Iterator[Problem]:
        """Yield contradictions with the rest of the config; keys are relative to the whole config."""
        yield from ()

    def data_problems(self, *, num_segments: int) -> Iterator[Problem]:
        """Yield contradictions with the samples that the objective makes; keys are relative to the whole config."""
        yield from ()

    @abstractmethod
    def build(self, vocab_size: int) -> Backbone:
        """Build the model in fp32, with initial weights drawn from torch's global generator."""
