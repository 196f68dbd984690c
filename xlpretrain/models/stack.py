"""The layer shared by all models, and stacks of layers with memories and optionally shared weights.

Shapes as in `relative_positions.py`; L is the number of layers applied, each with its own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float, Int32
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlpretrain.models.attention import Attention, RelativeAttention, may_be_by_hand
from xlpretrain.models.attention_mask import AttentionMask, attention_mask, mask_of, view_of
from xlpretrain.models.backbone import Backbone, BackboneConfig, BackboneInput
from xlpretrain.models.kernels.dropout import Dropout
from xlpretrain.models.kernels.fused.layer.parts import Parts
from xlpretrain.models.kernels.fused.visibility import visibility
from xlpretrain.models.parts.feed_forward import (
    Activation,
    AnyFeedForward,
    FeedForward,
    FeedForwardSettings,
    MLPConfig,
)
from xlpretrain.models.parts.norm import AnyNorm, LayerNormConfig
from xlpretrain.models.parts.positions import AnyPositions, SinusoidalConfig
from xlpretrain.models.relative_positions import RelativePositions
from xlpretrain.schema import Problem


class Layer(nn.Module):
    """Attention over memory and new tokens, then a feed-forward, each with its residual and norm.

    Post-norm: norm(x + f(x)). Pre-norm: x + f(norm(x)), with the memory normalized like the new tokens; as in the
    originals, no final norm follows the last layer.
    """

    whole: bool = False
    """True: with fused attention, the whole layer has one backward pass of our own; see `kernels/fused/layer/whole.py`.
    Its parts are not called then, so their hooks are not either."""

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
        mask: AttentionMask,
        *places: Any,
        distance: Float[Tensor, "G R N H"] | None = None,
        seeds: Int32[Tensor, "4 2"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Hidden states after this layer: those of the T tokens, then those of the predictions, which no query attends.

        Args:
            memory: earlier inputs of this layer.
            places: further arguments of the attention, after the mask.
            distance: the projected distances, for a layer that is computed as a whole.
            seeds: of all dropout of such a layer; None: nothing is dropped there.
        """
        if distance is not None:
            parts = self.parts()
            assert parts is not None and mask.view is not None
            return parts.compute(hidden, memory, mask.view, distance, seeds, places[1:])
        num_tokens, queries = mask.added.shape[2] - memory.shape[1], hidden
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

    def parts(self) -> Parts | None:
        """The layer's modules, if it may be computed as a whole."""
        norms = self.attention_norm, self.feed_forward_norm
        return None if self.pre_norm else Parts.of(self.attention, self.feed_forward, norms, self.dropout)

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """FLOPs of forward and backward, with the cost of predictions spread over the tokens."""
        feed_forward = self.feed_forward.flops_per_token() * (1 + num_predictions / seq_len)
        return self.attention.flops_per_token(seq_len, mem_len, num_predictions) + feed_forward


class Pooler(nn.Module):
    """The vector of a whole sample: tanh of a linear map of its first token's hidden state (BERT, arXiv:1810.04805)."""

    def __init__(self, d_model: int, *, init_std: float):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)
        draw(self.linear, init_std, truncated=True)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One vector per sample."""
        return torch.tanh(self.linear(hidden[:, 0]))


def draw(module: nn.Module, std: float, *, truncated: bool = False) -> None:
    """Initialize linear and embedding weights from N(0, std) and biases with 0, norms not at all. For `Module.apply`.

    truncated: truncate at two standard deviations, like TensorFlow's truncated_normal.
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
    """The keys common to all models that are stacks of layers."""

    num_layers: PositiveInt = 12
    """Number of layers, each with its own memory, and with its own weights unless num_layer_groups is smaller."""
    num_layer_groups: PositiveInt | None = None
    """Number of groups of consecutive layers that share weights (1 in ALBERT); null: each layer has its own."""
    layers_per_group: PositiveInt = 1
    """Number of distinct layers in a group, which the group repeats (ALBERT's inner groups)."""
    num_heads: PositiveInt = 12
    """Number of attention heads per layer."""
    d_model: PositiveInt = 768
    """Width of the hidden states."""
    d_head: PositiveInt | None = None
    """Width of a head; null: d_model / num_heads."""
    d_ff: PositiveInt = 3072
    """Inner width of the feed-forward layers."""
    feed_forward: AnyFeedForward = MLPConfig()
    """Feed-forward of the layers: mlp (two linear maps) or glu (a gated linear unit with three)."""
    norm: AnyNorm = LayerNormConfig()
    """Norm of the layers, and of an encoder's embedding and head: layer_norm or rms_norm."""
    d_embed: PositiveInt | None = None
    """Width of the token vectors, projected to d_model if it differs; null: d_model."""
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
    """Standard deviation of initial weights."""

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
        """For each layer applied, the index of its weights; layer l is in group l * groups // layers."""
        groups = self.num_layer_groups or self.num_layers
        first = [layer * groups // self.num_layers * self.layers_per_group for layer in range(self.num_layers)]
        return [index + inner for index in first for inner in range(self.layers_per_group)]

    @property
    def num_distinct_layers(self) -> int:
        """Number of layers with their own weights."""
        return self.layer_to_weights[-1] + 1


class StackedBackbone(Backbone):
    """A backbone with `layers`: the distinct ones; a layer with shared weights is applied more than once."""

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

    @property
    def fused(self) -> bool:
        """True if attention is by our own kernels, which take no matrix of queries and keys."""
        return cast(Layer, self.layers[0]).attention.implementation == "fused"

    def mask(self, inputs: BackboneInput, hidden: Tensor, *, may_be_blind: bool, **settings: Any) -> AttentionMask:
        """The mask of all layers. settings: arguments of `attention_mask`; may_be_blind: see `mask_of`."""
        if self.fused:
            return view_of(visibility(inputs, **settings), hidden)
        return mask_of(attention_mask(inputs, **settings), hidden.dtype, may_be_blind=may_be_blind)

    def apply_layers(
        self,
        hidden: Float[Tensor, "B Q D"],
        mems: Float[Tensor, "L B M D"],
        inputs: BackboneInput,
        mask: AttentionMask,
        *places: object,
        biases: Sequence[Float[Tensor, "_ N H"]] = (),
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "L B M D"]]:
        """The hidden states after all layers, and each layer's next memory: its last M inputs, detached.

        Args:
            hidden: states of the tokens, then of a second stream's predictions, which do not enter the memory.
            places: further arguments of every layer's attention, after the mask.
            biases: attention biases, passed after `places`; each has one entry for all layers or one per distinct
                layer.
        """
        num_tokens = inputs.tokens.shape[1]
        if not inputs.mem_is_full:
            mems = _forget(mems, inputs.mem_valid_len)
        further, biases = self._for_whole_layers(hidden, mems, places, biases)
        layer_inputs, by_layer = [], [bias.unbind() for bias in biases]
        for memory, index, more in zip(mems, self.layer_to_weights, further, strict=True):
            layer_inputs.append(hidden.detach()[:, :num_tokens][:, : inputs.reuse_len])
            layer, own = self.layers[index], (bias[index if len(bias) > 1 else 0] for bias in by_layer)
            arguments = (hidden, memory, mask, *places, *own)
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, *arguments, use_reentrant=False, **more)
            else:
                hidden = layer(*arguments, **more)
        return hidden, _remember(mems, layer_inputs)

    def _for_whole_layers(
        self, hidden: Tensor, mems: Tensor, places: Sequence[object], biases: Sequence[Tensor]
    ) -> tuple[list[dict[str, Any]], Sequence[Tensor]]:
        """Further arguments of each layer if it is computed as a whole, and one attention bias for each.

        What all layers need is computed at once: projected distances by one product, and seeds of dropout. A bias that
        layers share is repeated, so that its gradients are summed at once.
        """
        layers, num_layers = cast(list[Layer], list(self.layers)), len(self.layer_to_weights)
        if not (layers[0].whole and self.fused and hidden.numel() and may_be_by_hand(mems)):
            return [{}] * num_layers, biases
        positions = cast(RelativePositions, places[0])
        attentions = [cast(RelativeAttention, layer.attention) for layer in layers]
        weights_UFD = torch.stack([attention.distance.weight for attention in attentions])
        rows_UXD = positions.distances.flatten(0, 1).expand(len(layers), -1, -1)
        shape = *positions.distances.shape[:2], attentions[0].num_heads, attentions[0].d_head
        distances = torch.bmm(rows_UXD, weights_UFD.mT).view(-1, *shape).unbind()
        further: list[dict[str, Any]] = [{"distance": distances[index]} for index in self.layer_to_weights]
        if self.training:
            drawn = torch.randint(-(2**31), 2**31 - 1, (num_layers, 4, 2), dtype=torch.int32, device=hidden.device)
            further = [{**more, "seeds": seeds} for more, seeds in zip(further, drawn.unbind(), strict=True)]
        return further, [bias.expand(len(layers), -1, -1) for bias in biases]

    def empty_memory(self, batch_size: int, mem_len: int) -> Float[Tensor, "L B M D"]:
        """Zeros with the dtype and device of the weights."""
        weight = next(self.layers.parameters()).detach()
        return weight.new_zeros(len(self.layer_to_weights), batch_size, mem_len, self.d_model)

    def layer_flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int) -> float:
        """6 FLOPs per weight of a matrix product, plus attention over all keys (PaLM, arXiv:2204.02311, app. B)."""
        layer = cast(Layer, self.layers[0])
        return len(self.layer_to_weights) * layer.flops_per_token(seq_len, mem_len, num_predictions)


def _forget(mems: Float[Tensor, "L B M D"], remembered: Tensor) -> Float[Tensor, "L B M D"]:
    """Zero the memory positions that do not belong to the sample, even if masked (see initial_memory)."""
    mem_len = mems.shape[2]
    strange = torch.arange(mem_len, device=mems.device) < mem_len - remembered[:, None]
    return mems.masked_fill(strange[..., None], 0)


def _remember(mems: Float[Tensor, "L B M D"], layer_inputs: Sequence[Float[Tensor, "B T D"]]) -> Tensor:
    """The last M positions of each layer's memory and inputs: [L, B, M, D]."""
    mem_len, num_tokens = mems.shape[2], layer_inputs[0].shape[1]
    newest = torch.stack([inputs[:, max(num_tokens - mem_len, 0) :] for inputs in layer_inputs])
    return newest if num_tokens >= mem_len else torch.cat([mems[:, :, num_tokens:], newest], dim=2)


class RelativeConfig(StackConfig):
    """The keys common to Transformer-XL and XLNet."""

    positions: AnyPositions = SinusoidalConfig()
    """Vectors of the distances between tokens, used by relative attention: sinusoidal."""
    clamp_len: Annotated[int, Field(ge=-1)] | None = None
    """Largest distance in tokens, in either direction; larger ones are clamped to it. null or -1: no limit."""
    untie_r: bool = True
    """Give each distinct layer its own attention biases; otherwise all layers share them."""
    initial_memory: Literal["none", "zeros"] = "none"
    """Memory that a new stream attends: none, or zeros as in the TensorFlow originals (and, for Transformer-XL, in
    transformers)."""

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        yield from super().problems()
        if not self.positions.for_distances:
            yield (
                "positions.type",
                f"{self.positions.type} has vectors for positions, but {self.type} needs vectors for distances; use"
                " sinusoidal",
            )
        if self.positions.type == "sinusoidal" and self.d_model % 2:
            yield "d_model", f"must be even (half sines, half cosines), got {self.d_model}"
        if self.clamp_len == 0:
            yield "clamp_len", "must be positive, or null for no limit, got 0"

    @property
    def longest_distance(self) -> int | None:
        """The distance to which larger ones are clamped; None: no limit."""
        return None if self.clamp_len == -1 else self.clamp_len

    def attention(self, *, bidirectional: bool) -> Callable[[], RelativeAttention]:
        """A factory of the layers' attention. bidirectional: support segments and both directions."""
        return partial(
            RelativeAttention,
            d_model=self.d_model,
            num_heads=self.num_heads,
            d_head=self.resolved_d_head,
            dropout=self.attention_dropout,
            bidirectional=bidirectional,
        )

    def init_biases(self) -> nn.Parameter:
        """An attention bias [1, N, H] shared by all layers or, if untied, one per distinct layer."""
        shape = (self.num_distinct_layers if self.untie_r else 1, self.num_heads, self.resolved_d_head)
        bias = nn.Parameter(torch.randn(shape) * self.init_std)
        bias.num_fused = shape[0]  # type: ignore[attr-defined]  # to an optimizer, one tensor per layer
        return bias
