"""A post-norm layer of relative attention with one backward pass of our own, for eager training on a GPU.

    states = norm(hidden + dropout(output(attention(hidden))))
    output = norm(states + dropout(outer(dropout(activation(inner(states))))))

Between the products, which are torch's, there is one program each way. Kept for the backward pass are the context,
biased queries, keys, values, distances, attention's output, both sums, the states, and the inner layer before its bias:
no masks, and neither the activation nor what is dropped of it. All gradients of the layer's input are added up by
products, and all partial sums of weights and biases are in one matrix, so that one program adds those.

Shapes as in `relative_positions.py`; F is the width of the inner layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from xlpretrain.models.kernels.fused.layer.operators import (
    activate,
    activate_backward,
    add_norm,
    add_norm_backward,
    bias_queries,
    bias_queries_backward,
    column_sums,
    partial_sums,
)
from xlpretrain.models.kernels.fused.visibility import Visibility


@dataclass(frozen=True)
class Settings:
    """A layer's settings that are no weights."""

    num_heads: int
    activation: str
    attention_rate: float
    """Dropout of the attention's weights."""
    rate: float
    """Dropout of the outputs of attention and feed-forward."""
    inner_rate: float
    epsilon: float
    centered: bool
    """True for LayerNorm, False for RMSNorm."""


class Weights(NamedTuple):
    """A layer's weights and biases; None: it has none."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    content_bias: Tensor
    position_bias: Tensor
    segment_bias: Tensor | None
    segment_embedding: Tensor | None
    attention_norm: Tensor
    attention_norm_bias: Tensor | None
    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor
    norm: Tensor
    norm_bias: Tensor | None


_SUMMED = (
    *("norm", "norm_bias", "outer_bias", "inner_bias", "attention_norm", "attention_norm_bias"),
    *("content_bias", "position_bias", "segment_bias", "segment_embedding"),
)
"""Weights whose gradients are sums over rows, in the order of their partial sums."""


@dataclass(frozen=True)
class Given:
    """The arguments without a gradient, besides the seeds."""

    memory: Float[Tensor, "B M D"]
    view: Visibility
    settings: Settings


def whole_layer(
    hidden: Float[Tensor, "B Q D"],
    distance: Float[Tensor, "G R N H"],
    seeds: Int32[Tensor, "4 2"] | None,
    given: Given,
    weights: Weights,
) -> Float[Tensor, "B Q D"]:
    """The output of a layer. All tensors have one data type.

    Args:
        distance: the projected distances: those of all layers are one product.
        seeds: of the dropout of the attention's weights and output, the inner layer, and the feed-forward's output;
            None: nothing is dropped.
    """
    output: Tensor = _Layer.apply(hidden, distance, seeds, given, *weights)  # type: ignore[no-untyped-call]
    return output


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, distance: Tensor, seeds: Tensor | None, given: Given, *weights: Tensor | None
    ) -> Tensor:
        of, settings = Weights(*weights), given.settings  # type: ignore[arg-type]
        of_attention, after, within, last = (None,) * 4 if seeds is None else seeds.unbind()
        kept = _attend(hidden, distance, of_attention, given, of)
        norm = settings.rate, settings.epsilon, settings.centered
        added = kept.attended.flatten(2) @ of.output.t()
        states, *of_states = add_norm(added, hidden, of.attention_norm, of.attention_norm_bias, after, *norm)
        inner = states.flatten(0, 1) @ of.inner.t()
        active = activate(inner, of.inner_bias, within, settings.inner_rate, settings.activation)
        added = torch.addmm(of.outer_bias, active, of.outer.t()).view_as(states)
        output: Tensor
        output, *of_output = add_norm(added, states, of.norm, of.norm_bias, last, *norm)
        ctx.save_for_backward(hidden, seeds, states, inner, *of_states, *of_output, *kept, *weights)
        ctx.given = given
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, seeds, states, inner, *saved = ctx.saved_tensors
        of_states, of_output, kept = saved[:3], saved[3:6], _Attended(*saved[6:15])
        of, given, settings = Weights(*saved[15:]), ctx.given, ctx.given.settings
        of_attention, after, within, last = (None,) * 4 if seeds is None else seeds.unbind()
        found: dict[str, Tensor] = {}
        sums = _Sums(of, inner)
        biased, rows = of.norm_bias is not None, inner.shape[0]
        d_states, d_added = add_norm_backward(
            gradients[0], *of_output, of.norm, last, *sums.at("norm"), settings.rate, biased, True
        )
        d_added = d_added.view(rows, -1)
        d_inner, active = activate_backward(
            d_added @ of.outer, inner, of.inner_bias, within, *sums.at("inner_bias"), settings.inner_rate,
            settings.activation,
        )  # fmt: skip
        found["outer"], found["inner"] = d_added.t() @ active, d_inner.t() @ states.view(rows, -1)
        del active
        d_states.view(rows, -1).addmm_(d_inner, of.inner)
        d_hidden, d_added = add_norm_backward(
            d_states, *of_states, of.attention_norm, after, *sums.at("attention_norm"), settings.rate, biased, False
        )
        d_added = d_added.view(rows, -1)
        found["output"] = d_added.t() @ kept.attended.view(rows, -1)
        d_attended = (d_added @ of.output).view_as(kept.attended)
        d_distance = _attend_backward(d_attended, d_hidden, hidden, of_attention, given, of, kept, sums, found)
        found |= sums.total()
        return d_hidden, d_distance, None, None, *(found.get(name) for name in Weights._fields)


class _Attended(NamedTuple):
    """The tensors that the backward pass of the attention needs."""

    context: Tensor
    """Memory and tokens, "B K D"."""
    by_content: Tensor
    key: Tensor
    value: Tensor
    by_position: Tensor
    distance: Tensor
    segment: Tensor
    attended: Tensor
    normalizer: Tensor


class _Sums:
    """The partial sums of all gradients in `_SUMMED`."""

    def __init__(self, of: Weights, like: Tensor):
        self._weights = {name: weight for name in _SUMMED if (weight := getattr(of, name)) is not None}
        self._partials = partial_sums(len(like), sum(weight.numel() for weight in self._weights.values()), like)
        self._dtype = like.dtype

    def at(self, name: str) -> tuple[Tensor, int]:
        """The matrix, and the first of a weight's columns in it."""
        names = list(self._weights)
        return self._partials, sum(self._weights[each].numel() for each in names[: names.index(name)])

    def total(self) -> dict[str, Tensor]:
        """The gradients."""
        sums = column_sums(self._partials, self._dtype).split([weight.numel() for weight in self._weights.values()])
        return {name: each.view_as(self._weights[name]) for name, each in zip(self._weights, sums, strict=True)}


def _attend(hidden: Tensor, distance: Tensor, seed: Tensor | None, given: Given, of: Weights) -> _Attended:
    """Project, and attend over memory and tokens."""
    context, num_heads = hidden[:, : given.view.num_tokens], given.settings.num_heads
    if given.memory.shape[1]:
        context = torch.cat([given.memory, context], dim=1)
    query, key, value = (
        (each @ weight.t()).view(*each.shape[:-1], num_heads, -1)
        for each, weight in ((hidden, of.query), (context, of.key), (context, of.value))
    )
    biases = of.content_bias, of.position_bias, of.segment_bias, of.segment_embedding
    by_content, by_position, segment = bias_queries(query, *biases)
    arguments = by_content, key, value, by_position, distance, segment if segment.numel() else None
    places = _places(given, seed, query.shape[-1])
    attended, normalizer = torch.ops.xlpretrain.fused_relative_attention(*arguments, *places)
    return _Attended(context, by_content, key, value, by_position, distance, segment, attended, normalizer)


def _attend_backward(
    d_attended: Tensor, d_hidden: Tensor, hidden: Tensor, seed: Tensor | None, given: Given, of: Weights,
    kept: _Attended, sums: _Sums, found: dict[str, Tensor],
) -> Tensor:  # fmt: skip
    """Add the gradient of the input to `d_hidden`, and those of the weights to `found` and `sums`.

    Returns the gradient of the distances.
    """
    arguments = kept.by_content, kept.key, kept.value, kept.by_position, kept.distance
    segment = kept.segment if kept.segment.numel() else None
    places = _places(given, seed, kept.key.shape[-1])
    d_content, d_key_value, d_position, d_distance, d_segment = torch.ops.xlpretrain.fused_relative_attention_backward(
        d_attended, kept.attended, kept.normalizer, *arguments, segment, *places
    )
    d_query = bias_queries_backward(
        d_content, d_position, d_segment, kept.by_content, of.content_bias, of.segment_bias, of.segment_embedding,
        *sums.at("content_bias"),
    )  # fmt: skip
    context, width = kept.context.flatten(0, 1), of.query.shape[0]
    found["query"] = d_query.view(-1, width).t() @ hidden.flatten(0, 1)
    d_rows_2FX = d_key_value.view(2, -1, width).mT
    found["key"], found["value"] = torch.bmm(d_rows_2FX, context.expand(2, -1, -1))
    d_hidden.view(-1, d_hidden.shape[-1]).addmm_(d_query.view(-1, width), of.query)
    d_of_tokens = d_hidden[:, : given.view.num_tokens]
    for d_projected, weight in zip(d_key_value.flatten(3), (of.key, of.value), strict=True):
        d_of_tokens.baddbmm_(d_projected[:, given.memory.shape[1] :], weight.expand(len(hidden), -1, -1))
    gradient: Tensor = d_distance
    return gradient


def _places(given: Given, seed: Tensor | None, width: int) -> tuple[Any, ...]:
    """The attention operator's arguments without a gradient."""
    view, rate = given.view, given.settings.attention_rate
    tensors = view.queries, view.keys, view.directions, seed if rate > 0 else None
    return *tensors, width**-0.5, rate, view.num_tokens, view.window, view.not_own
