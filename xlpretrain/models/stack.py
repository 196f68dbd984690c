"""The layer that all models are made of, and stacks of layers with memories, whose weights may be shared.

Shapes as in `relative_positions.py`; L is the number of layers applied, each of which has a memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlpretrain.models.attention import Attention, RelativeAttention
from xlpretrain.models.backbone import Backbone, BackboneConfig, BackboneInput
from xlpretrain.models.kernels.dropout import Dropout
from xlpretrain.models.parts.feed_forward import (
    Activation,
    AnyFeedForward,
    FeedForward,
    FeedForwardSettings,
    MLPConfig,
)
from xlpretrain.models.parts.norm import AnyNorm, LayerNormConfig
from xlpretrain.models.parts.positions import AnyPositions, SinusoidalConfig
from xlpretrain.schema import Problem


class Layer(nn.Module):
    """Attention over memory and new tokens, then a feed-forward, each with its residual and norm.

    Post-norm: norm(x + f(x)). Pre-norm: x + f(norm(x)), the memory normed like the new tokens; as in the originals,
    no further norm follows the last layer.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norm: Callable[[], nn.Module],
        *,
        dropout: float,
        pre_norm: bool,
    ):
        super().__init__()
        self.attention = attention
        self.attention_norm = norm()
        self.feed_forward = feed_forward
        self.feed_forward_norm = norm()
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        hidden: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B M D"],
        mask: Float[Tensor, "B Q K"],
        *places: Any,
    ) -> Float[Tensor, "B Q D"]:
        """The hidden states after this layer: of the T tokens, then of the predictions, which no query attends.

        Args:
            memory: earlier inputs of this same layer.
            places: what this kind of attention takes beside the mask.
        """
        num_tokens, queries = mask.shape[2] - memory.shape[1], hidden
        if self.pre_norm:
            memory, queries = self.attention_norm(memory), self.attention_norm(hidden)
        attended = self.attention(queries, memory, queries[:, :num_tokens], mask, *places)
        hidden = hidden + self.dropout(attended)
        if self.pre_norm:
            hidden = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        else:
            hidden = self.attention_norm(hidden)
            hidden = self.feed_forward_norm(hidden + self.feed_forward(hidden))
        return hidden

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """Forward and backward, predictions shared out to the tokens."""
        feed_forward = self.feed_forward.flops_per_token() * (1 + num_predictions / seq_len)
        return self.attention.flops_per_token(seq_len, mem_len, num_predictions) + feed_forward


class Pooler(nn.Module):
    """The vector of a whole sample: tanh of a linear map of its first token's hidden state (BERT, arXiv:1810.04805)."""

    def __init__(self, d_model: int, *, init_std: float):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)
        draw(self.linear, init_std, truncated=True)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One vector a sample."""
        return torch.tanh(self.linear(hidden[:, 0]))


def draw(module: nn.Module, std: float, *, truncated: bool = False) -> None:
    """Weights of linear maps and embeddings from N(0, std), biases 0; norms keep their 1 and 0. For `Module.apply`.

    truncated: at two standard deviations, as TensorFlow's truncated_normal.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        if truncated:
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


Rate = Annotated[float, Field(ge=0, lt=1)]


class StackConfig(BackboneConfig):
    """The keys that every model of layers has."""

    num_layers: PositiveInt = 12
    """Layers, each with its own memory, and with its own weights unless num_layer_groups is smaller."""
    num_layer_groups: PositiveInt | None = None
    """Groups of consecutive layers that share their weights (ALBERT has 1); null: each layer has its own."""
    layers_per_group: PositiveInt = 1
    """Number of layers with weights of their own in a group, which is what a group repeats: ALBERT's inner groups."""
    num_heads: PositiveInt = 12
    """Attention heads of a layer."""
    d_model: PositiveInt = 768
    """Width of the hidden states."""
    d_head: PositiveInt | None = None
    """Width of a head; d_model / num_heads unless set."""
    d_ff: PositiveInt = 3072
    """Inner width of the feed-forward layers."""
    feed_forward: AnyFeedForward = MLPConfig()
    """Feed-forward of the layers: mlp (two linear maps) or glu (a gated linear unit, of three)."""
    norm: AnyNorm = LayerNormConfig()
    """Norm of the layers, and of an encoder's embedding and head: layer_norm or rms_norm."""
    d_embed: PositiveInt | None = None
    """Width of the token vectors, projected to d_model where it differs; d_model unless set."""
    dropout: Rate = 0.1
    """Dropout of embeddings and of the outputs of attention and feed-forward."""
    attention_dropout: Rate = 0.1
    """Dropout of attention weights."""
    activation: Activation = "gelu_tanh"
    """Activation of the feed-forward layers: relu, gelu (exact), gelu_tanh (the approximation of the original
    code), or silu."""
    pre_norm: bool = False
    """Normalize before attention and feed-forward (x + f(norm(x))) instead of after (norm(x + f(x)))."""
    layer_norm_eps: PositiveFloat = 1e-12
    """Added to the variance, or the mean square, in a norm."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of fresh weights."""

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        if self.d_head is None and self.d_model % self.num_heads:
            yield "num_heads", f"must divide d_model ({self.d_model}) unless d_head is set, got {self.num_heads}"
        if (self.num_layer_groups or 0) > self.num_layers:
            yield "num_layer_groups", f"must be at most num_layers ({self.num_layers}), got {self.num_layer_groups}"

    @property
    def resolved_d_head(self) -> int:
        """Width of a head."""
        return self.d_head or self.d_model // self.num_heads

    @property
    def resolved_d_embed(self) -> int:
        """Width of the token vectors."""
        return self.d_embed or self.d_model

    @property
    def layer_to_weights(self) -> list[int]:
        """For each layer applied, whose weights it has: layer l is group l * groups // layers."""
        groups = self.num_layer_groups or self.num_layers
        first = [layer * groups // self.num_layers * self.layers_per_group for layer in range(self.num_layers)]
        return [index + inner for index in first for inner in range(self.layers_per_group)]

    @property
    def num_distinct_layers(self) -> int:
        """Layers with weights of their own."""
        return self.layer_to_weights[-1] + 1


class StackedBackbone(Backbone):
    """A backbone with `layers`, those with weights of their own; a shared one is applied more than once."""

    def __init__(
        self, config: StackConfig, embedding: nn.Module, attention: Callable[[], Attention], *, inner_dropout: float
    ):
        super().__init__()
        self.embedding = embedding
        self.d_model, self.init_std = config.d_model, config.init_std
        self.layer_to_weights = config.layer_to_weights
        self.dropout = Dropout(config.dropout)
        settings = FeedForwardSettings(
            d_model=config.d_model,
            d_ff=config.d_ff,
            activation=config.activation,
            dropout=config.dropout,
            inner_dropout=inner_dropout,
        )
        self.layers = nn.ModuleList(
            Layer(
                attention(),
                config.feed_forward.build(settings),
                partial(config.norm.build, config.d_model, eps=config.layer_norm_eps),
                dropout=config.dropout,
                pre_norm=config.pre_norm,
            )
            for _ in range(config.num_distinct_layers)
        )

    def apply_layers(
        self,
        hidden: Float[Tensor, "B Q D"],
        mems: Float[Tensor, "L B M D"],
        inputs: BackboneInput,
        mask: Float[Tensor, "B Q K"],
        *places: object,
        biases: Sequence[Float[Tensor, "_ N H"]] = (),
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "L B M D"]]:
        """The hidden states after all layers, and each one's next memory: its last M inputs, detached.

        Args:
            hidden: of the tokens, then of a second stream's predictions, which are not remembered.
            places: what every layer's attention takes beside the mask.
            biases: what it takes after that, for all layers or for each with weights of its own.
        """
        num_tokens = inputs.tokens.shape[1]
        mems = _forget(mems, inputs.mem_valid_len)
        next_mems = []
        for memory, index in zip(mems, self.layer_to_weights, strict=True):
            next_mems.append(_remember(memory, hidden[:, :num_tokens][:, : inputs.reuse_len]))
            layer, own = self.layers[index], (bias[index if len(bias) > 1 else 0] for bias in biases)
            arguments = (hidden, memory, mask, *places, *own)
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                hidden = layer(*arguments)
        return hidden, torch.stack(next_mems)

    def empty_memory(self, batch_size: int, mem_len: int) -> Float[Tensor, "L B M D"]:
        """Zeros, in the dtype and on the device of the weights."""
        weight = next(self.layers.parameters()).detach()
        return weight.new_zeros(len(self.layer_to_weights), batch_size, mem_len, self.d_model)

    def layer_flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int) -> float:
        """6 per weight of a matrix product, and attention over all keys (PaLM, arXiv:2204.02311, appendix B)."""
        layer = cast(Layer, self.layers[0])
        return len(self.layer_to_weights) * layer.flops_per_token(seq_len, mem_len, num_predictions)


def _forget(mems: Float[Tensor, "L B M D"], remembered: Tensor) -> Float[Tensor, "L B M D"]:
    """Zeros where a memory is not the sample's own, whether they will be seen (initial_memory zeros) or not."""
    mem_len = mems.shape[2]
    strange = torch.arange(mem_len, device=mems.device) < mem_len - remembered[:, None]
    return mems.masked_fill(strange[..., None], 0)


def _remember(memory: Float[Tensor, "B M D"], hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B M D"]:
    """The last M positions of memory and hidden states, detached."""
    mem_len, num_tokens = memory.shape[1], hidden.shape[1]
    if num_tokens >= mem_len:
        return hidden.detach()[:, num_tokens - mem_len :]
    return torch.cat([memory[:, num_tokens:], hidden.detach()], dim=1)


class RelativeConfig(StackConfig):
    """The keys that both have, beside those of every stack of layers."""

    positions: AnyPositions = SinusoidalConfig()
    """Vectors of the distances between tokens, which relative attention scores keys by: sinusoidal."""
    clamp_len: Annotated[int, Field(ge=-1)] | None = None
    """Distances of more than this many tokens, either way, count as this many; null or -1: no limit."""
    untie_r: bool = True
    """Give each layer with weights of its own its own attention biases; else all layers share them."""
    initial_memory: Literal["none", "zeros"] = "none"
    """The past that a new stream attends: none, or zeros as in the TensorFlow originals (and, for Transformer-XL, in
    transformers)."""

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        yield from super().problems()
        if not self.positions.for_distances:
            yield (
                "positions.type",
                f"{self.positions.type} gives vectors to positions, and {self.type} needs those of distances; use"
                " sinusoidal",
            )
        if self.positions.type == "sinusoidal" and self.d_model % 2:
            yield "d_model", f"must be even (half sines, half cosines), got {self.d_model}"
        if self.clamp_len == 0:
            yield "clamp_len", "must be positive, or null for no limit, got 0"

    @property
    def longest_distance(self) -> int | None:
        """Beyond which distances are alike; None: there is no limit."""
        return None if self.clamp_len == -1 else self.clamp_len

    def attention(self, *, bidirectional: bool) -> Callable[[], RelativeAttention]:
        """The factory of a layer's attention. bidirectional: with segments, and for both directions."""
        return partial(
            RelativeAttention,
            d_model=self.d_model,
            num_heads=self.num_heads,
            d_head=self.resolved_d_head,
            dropout=self.attention_dropout,
            bidirectional=bidirectional,
        )

    def init_biases(self) -> nn.Parameter:
        """A bias of attention: [1, N, H] for all layers, or, untied, one for each layer with weights of its own."""
        shape = (self.num_distinct_layers if self.untie_r else 1, self.num_heads, self.resolved_d_head)
        bias = nn.Parameter(torch.randn(shape) * self.init_std)
        bias.num_fused = shape[0]  # type: ignore[attr-defined]  # to an optimizer each layer's is a tensor of its own
        return bias
