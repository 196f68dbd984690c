"""Fused relative attention as two operators of torch, forward and backward, with shapes for the meta device.

Scores by position are made by the programs themselves (see `programs/__init__.py`), or by a matrix product, used, and
freed: always of predictions, which may be at any positions, and of all queries where the tiles say so. The backward
pass makes them again, so what is kept are the arguments, the output, and one number per query. Shapes as in
`relative_positions.py`, with H the width of a head, and J = G H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlpretrain.models.kernels.fused.launch import Call
from xlpretrain.models.kernels.fused.scores import ScoresInMemory
from xlpretrain.models.kernels.fused.visibility import Visibility

_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor by_position, Tensor distance, Tensor? segment, Tensor queries,"
    " Tensor keys, Tensor? directions, Tensor? seed, float scale, float rate, int num_tokens, bool window, bool not_own"
)


def fused_relative_attention(
    query_BQNH: Tensor,
    key_BKNH: Tensor,
    value_BKNH: Tensor,
    by_position_BQNH: Tensor,
    distance_GRNH: Tensor,
    segment_NBQ2: Tensor | None,
    view: Visibility,
    *,
    scale: float,
    rate: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax((query key + by_position distance[column] + segment[same or other]) scale) value: "B Q N H".

    A query that sees nothing gets zeros, and no gradient.

    Args:
        segment_NBQ2: the score of keys in the query's segment, and of those in others; None without segments.
        rate: dropout of the weights, if there is a seed (two int32 on the device).
    """
    output: Tensor = torch.ops.xlpretrain.fused_relative_attention(
        query_BQNH,
        key_BKNH,
        value_BKNH,
        by_position_BQNH,
        distance_GRNH,
        segment_NBQ2,
        view.queries,
        view.keys,
        view.directions,
        seed,
        scale,
        rate,
        view.num_tokens,
        view.window,
        view.not_own,
    )[0]
    return output


def draw_seed(device: torch.device) -> Tensor:
    """Two random int32 from the device's generator: dropped weights are a function of them alone."""
    return torch.randint(-(2**31), 2**31 - 1, (2,), dtype=torch.int32, device=device)


@torch.library.custom_op(
    "xlpretrain::fused_relative_attention", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)"
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The output, and the log2 of each query's sum of exponentials, "N B Q"."""
    call = Call(*_contiguous(arguments))
    output, normalizer = torch.empty_like(call.query), _per_query(call.query)
    results = output, normalizer
    position = ScoresInMemory(call).scores if call.in_memory else None
    call.launch_for_queries("forward", position, results, results)
    return output, normalizer


@torch.library.custom_op(
    "xlpretrain::fused_relative_attention_backward",
    mutates_args=(),
    schema=f"(Tensor d_output, Tensor output, Tensor normalizer, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(d_output: Tensor, output: Tensor, normalizer: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of queries, of keys and values ("2 B K N H"), position queries, distances and segment scores."""
    call, d_output = Call(*_contiguous(arguments)), d_output.contiguous()
    d_query, d_by_position = torch.empty_like(call.query), torch.empty_like(call.by_position)
    d_key, d_value = d_key_value = call.key.new_empty(2, *call.key.shape)
    d_segment, delta = _like_segment(call.query, call.segment), _per_query(call.query)
    scores = ScoresInMemory(call) if call.in_memory else None
    position, d_position = (scores.scores, torch.empty_like(scores.scores)) if scores else (None, None)
    before, after = (output, normalizer, d_output, d_query, d_by_position), (d_segment, delta)
    call.launch_for_queries("backward_queries", position, (*before, d_query, *after), (*before, d_position, *after))
    common = normalizer, d_output, delta
    call.launch_for_keys(position, (*common, d_key, d_value))
    d_distance = call.gradient_of_distances(common)
    if scores:
        assert d_position is not None
        d_distance = scores.add_gradients(d_position, d_by_position, d_distance)
    assert d_distance is not None
    return d_query, d_key_value, d_by_position, d_distance, d_segment


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    query = arguments[0]
    return query.new_empty(query.shape), _per_query(query)


@_backward.register_fake
def _(d_output: Tensor, output: Tensor, normalizer: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    query, key, _, *others, segment = arguments[:6]
    learned = (query.new_empty(query.shape), key.new_empty(2, *key.shape))
    return (*learned, *(tensor.new_empty(tensor.shape) for tensor in others), _like_segment(query, segment))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:10], *output)
    ctx.settings = inputs[10:]
    ctx.set_materialize_grads(False)


def _propagate(ctx: Any, d_output: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, output, normalizer = ctx.saved_tensors
    d_query, d_key_value, *gradients, d_segment = torch.ops.xlpretrain.fused_relative_attention_backward(
        d_output, output, normalizer, *tensors, *ctx.settings
    )
    others = len(tensors) - len(gradients) - 4 + len(ctx.settings)
    return (d_query, *d_key_value.unbind(), *gradients, None if tensors[5] is None else d_segment, *[None] * others)


_forward.register_autograd(_propagate, setup_context=_keep)


def _contiguous(arguments: tuple[Any, ...]) -> list[Any]:
    return [each.contiguous() if isinstance(each, Tensor) else each for each in arguments]


def _per_query(query_BQNH: Tensor) -> Tensor:
    batch_size, num_queries, num_heads, _ = query_BQNH.shape
    return query_BQNH.new_empty(num_heads, batch_size, num_queries, dtype=torch.float32)


def _like_segment(query_BQNH: Tensor, segment_NBQ2: Tensor | None) -> Tensor:
    """An empty tensor, since an operator cannot return None, where there are no segments."""
    return query_BQNH.new_empty(0 if segment_NBQ2 is None else segment_NBQ2.shape)
