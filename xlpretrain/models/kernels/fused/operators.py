"""Fused relative attention as two operators of torch, forward and backward, with shapes for the meta device.

The scores by position are made by one matrix product, used, and freed: the backward pass makes them again, so what is
kept are the arguments, the output, and one number per query. Shapes as in `relative_positions.py`, H the width of a
head, and J the width of the vectors of a distance: H, or 2 H with two sets of distances.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from xlpretrain.extras import optional
from xlpretrain.models.kernels.fused.tiles import LARGEST, Tile, padded, tiles
from xlpretrain.models.kernels.fused.visibility import Visibility

_DROPPED = 2**31
"""Number of levels of a dropout rate."""

_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor by_position, Tensor distance, Tensor? segment, Tensor queries,"
    " Tensor keys, Tensor? seed, float scale, float rate, int num_tokens, bool window, bool not_own"
)


def fused_relative_attention(
    query_BQNH: Tensor,
    key_BKNH: Tensor,
    value_BKNH: Tensor,
    by_position_BQNJ: Tensor,
    distance_RNJ: Tensor,
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
        by_position_BQNJ,
        distance_RNJ,
        segment_NBQ2,
        view.queries,
        view.keys,
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


def _scores_by_distance(by_position_BQNJ: Tensor, distance_RNJ: Tensor) -> Tensor:
    """All scores by position, "N (B Q) R"; one batch of products over the heads, so that no operand is copied.

    After them is room for the rows and keys that the last tile reads beyond its end.
    """
    rows, num_heads, num_distances = by_position_BQNJ.shape[:2].numel(), *distance_RNJ.shape[1::-1]
    size = num_heads * rows * num_distances
    scores = by_position_BQNJ.new_empty(size + 2 * LARGEST * (num_distances + 1))[:size]
    scores_NSR = scores.view(num_heads, rows, num_distances)
    operands = by_position_BQNJ.flatten(0, 1).transpose(0, 1), distance_RNJ.permute(1, 2, 0)
    return torch.bmm(*operands, out=scores_NSR)


@torch.library.custom_op(
    "xlpretrain::fused_relative_attention", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)"
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The output, and the log2 of each query's sum of exponentials, "N B Q"."""
    query, key, value, by_position, distance, *rest = _contiguous(arguments)
    call = _Call(query, key, distance.shape[0], *rest)
    scores = _scores_by_distance(by_position, distance)
    output, normalizer = torch.empty_like(query), _per_query(query)
    call.launch("forward", (query, key, value, scores), (output, normalizer))
    return output, normalizer


@torch.library.custom_op(
    "xlpretrain::fused_relative_attention_backward",
    mutates_args=(),
    schema=f"(Tensor d_output, Tensor output, Tensor normalizer, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(d_output: Tensor, output: Tensor, normalizer: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of queries, keys, values, position queries ("N (B Q) J"), distances ("N R J") and segment scores."""
    query, key, value, by_position, distance, *rest = _contiguous(arguments)
    call, d_output = _Call(query, key, distance.shape[0], *rest), d_output.contiguous()
    scores = _scores_by_distance(by_position, distance)
    d_query, d_key, d_value = (torch.empty_like(tensor) for tensor in (query, key, value))
    d_scores, d_segment, delta = torch.empty_like(scores), _like_segment(query, call.segment), _per_query(query)
    common = query, key, value, scores
    call.launch("backward_queries", common, (output, normalizer, d_output, d_query, d_scores, d_segment, delta))
    call.launch("backward_keys", common, (normalizer, d_output, delta, d_key, d_value))
    d_position = torch.bmm(d_scores, distance.transpose(0, 1))
    d_distance = torch.bmm(d_scores.transpose(1, 2), by_position.flatten(0, 1).transpose(0, 1))
    return d_query, d_key, d_value, d_position, d_distance, d_segment


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    query = arguments[0]
    return query.new_empty(query.shape), _per_query(query)


@_backward.register_fake
def _(d_output: Tensor, output: Tensor, normalizer: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    query, key, value, by_position, distance, segment, *_ = arguments
    batch_size, num_queries, num_heads, width = by_position.shape
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        by_position.new_empty(num_heads, batch_size * num_queries, width),
        distance.new_empty(num_heads, distance.shape[0], width),
        _like_segment(query, segment),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:9], *output)
    ctx.settings = inputs[9:]
    ctx.set_materialize_grads(False)


def _propagate(ctx: Any, d_output: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, output, normalizer = ctx.saved_tensors
    d_query, d_key, d_value, d_position, d_distance, d_segment = torch.ops.xlpretrain.fused_relative_attention_backward(
        d_output, output, normalizer, *tensors, *ctx.settings
    )
    return (
        d_query,
        d_key,
        d_value,
        d_position.transpose(0, 1).unflatten(0, d_query.shape[:2]),
        d_distance.transpose(0, 1),
        None if tensors[5] is None else d_segment,
        *[None] * (len(tensors) - 6 + len(ctx.settings)),
    )


_forward.register_autograd(_propagate, setup_context=_keep)


def _contiguous(arguments: tuple[Any, ...]) -> list[Any]:
    return [each.contiguous() if isinstance(each, Tensor) else each for each in arguments]


def _per_query(query_BQNH: Tensor) -> Tensor:
    batch_size, num_queries, num_heads, _ = query_BQNH.shape
    return query_BQNH.new_empty(num_heads, batch_size, num_queries, dtype=torch.float32)


def _like_segment(query_BQNH: Tensor, segment_NBQ2: Tensor | None) -> Tensor:
    """An empty tensor, since an operator cannot return None, where there are no segments."""
    return query_BQNH.new_empty(0 if segment_NBQ2 is None else segment_NBQ2.shape)


class _Call:
    """One attention's sizes and settings, with which its three programs are launched."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        num_distances: int,
        segment: Tensor | None,
        queries: Tensor,
        keys: Tensor,
        seed: Tensor | None,
        scale: float,
        rate: float,
        num_tokens: int,
        window: bool,
        not_own: bool,
    ):
        self.samples, self.queries, self.heads, self.width = query.shape
        self.keys, self.dtype, self.device = key.shape[1], query.dtype, query.device
        self.segment = segment
        self.places = (segment if segment is not None else query, queries, keys, seed if seed is not None else queries)
        dropped = round(rate * _DROPPED)
        numbers = self.samples, self.heads, self.queries, self.keys, num_distances, num_tokens
        keep_scale = 1.0 if seed is None else _DROPPED / (_DROPPED - dropped)
        self.numbers = (*numbers, dropped, keep_scale, scale)
        self.constants = {
            "SEGMENTS": segment is not None,
            "WINDOW": window,
            "NOT_OWN": not_own,
            "DROPOUT": seed is not None and dropped > 0,
        }

    def launch(self, program: str, inputs: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> None:
        """Run a program on all of its tiles."""
        with optional("triton", "engine.attention: fused"):
            from xlpretrain.models.kernels.fused import programs

        tile = tiles(self.device, self.dtype, self.width)[program]
        along = (self.keys, tile.keys) if program == "backward_keys" else (self.queries, tile.queries)
        grid = (-(-along[0] // along[1]) * self.samples * self.heads,)
        getattr(programs, program)[grid](
            *inputs, *self.places, *results, *self.numbers, **self.constants, **constants(tile, self.width)
        )


def constants(tile: Tile, width: int) -> dict[str, Any]:
    """The compile-time arguments of a program that depend on the width of a head and the tile."""
    # As torch's own products: fp32 (three products of TF32 each), or TF32 where that is allowed. Of no effect on bf16.
    precision = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    if os.environ.get("TRITON_INTERPRET") == "1":
        precision = "widened"
    return {
        "H": width,
        "HP": padded(width),
        "BQ": tile.queries,
        "BK": tile.keys,
        "PRECISION": precision,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
