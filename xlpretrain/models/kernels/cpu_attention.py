"""Attention on CPUs, a few heads and queries at a time, so that scores stay in the cache, with its own backward pass.

One tensor of the size of the scores is kept for the backward pass: the weights, negative where they were dropped. Keys
that no query of a tile may attend (those after it, in a causal model) are skipped in all products. Shapes as in
`relative_positions.py`; a tile has n heads, q queries, k keys and r distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from xlpretrain.models.kernels.dropout import dropout_sign_bits, keep_scale
from xlpretrain.models.relative_positions import RelativePositions, gather_distances, relative_shift

_ELEMENTS = 2**20
"""Approximate number of scores in a tile: 2 MB in bf16."""
_QUERIES = 128
"""Number of queries in a tile, if some keys can be skipped."""
_BLOCKS = WeakTensorKeyDictionary()
"""Cache of the tiles of each mask in use; all layers have the same mask."""


@dataclass(frozen=True)
class AttentionTile:
    """Indices of one product: heads [n0, n1) and queries [q0, q1) of one sample, and its keys before k1."""

    sample: int
    n0: int
    n1: int
    q0: int
    q1: int
    k1: int
    masked: bool
    """True if any of these keys is masked for any of these queries."""
    blind: bool
    """True if any of these queries may attend no key."""


@dataclass(frozen=True)
class TilePlan:
    """Mask, positions and dropout of one attention; only the dropout seed depends on the layer."""

    mask: Tensor
    positions: RelativePositions | None
    rate: float
    seed: int | None

    def predictions_from(self, num_queries: int) -> int:
        """The index of the first query of the second stream."""
        predict = self.positions.target_positions if self.positions is not None else None
        return num_queries - (0 if predict is None else predict.shape[1])

    def blocks(self, num_heads: int) -> list[AttentionTile]:
        """The tiles that cover all scores, in the order in which dropout bits are drawn."""
        num_queries = self.mask.shape[1]
        tokens = self.predictions_from(num_queries)
        known: dict[tuple[int, int], list[AttentionTile]] = _BLOCKS.setdefault(self.mask, {})  # type: ignore[no-untyped-call]
        if (num_heads, tokens) not in known:
            known[num_heads, tokens] = self._cut(num_heads, tokens, num_queries)
        return known[num_heads, tokens]

    def _cut(self, num_heads: int, tokens: int, num_queries: int) -> list[AttentionTile]:
        seen_BQK = self.mask == 0
        blocks = []
        for sample, seen_QK in enumerate(seen_BQK):
            for start, stop in ((0, tokens), (tokens, num_queries)):
                for q0, q1, k1 in _cuts(seen_QK, start, stop):
                    part = seen_QK[q0:q1, :k1]
                    masked = not bool(part.all())
                    blind = masked and not bool(part.any(dim=1).all())
                    heads = max(1, _ELEMENTS // ((q1 - q0) * max(k1, 1)))
                    for n0 in range(0, num_heads, heads):
                        blocks.append(AttentionTile(sample, n0, min(n0 + heads, num_heads), q0, q1, k1, masked, blind))
        return blocks


def _cuts(seen_QK: Tensor, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield ranges (q0, q1, k1) of the queries from start to stop, split if that lets some keys be skipped."""
    if start == stop:
        return
    edges = [*range(start, stop, _QUERIES), stop]
    reach = [_reach(seen_QK[a:b]) for a, b in pairwise(edges)]
    if all(k1 == reach[0] for k1 in reach):
        yield start, stop, reach[0]
    else:
        yield from ((first, last, k1) for (first, last), k1 in zip(pairwise(edges), reach, strict=True))


def _reach(seen_QK: Tensor) -> int:
    """The number of leading keys that any query may attend; at least 1."""
    seen = seen_QK.any(dim=0).nonzero()
    return int(seen[-1]) + 1 if len(seen) else 1


class TiledAttention(torch.autograd.Function):
    """softmax(scores) values; see `attention.py` for the scores. Queries are already scaled by 1 / sqrt(H)."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BQNH: Tensor,
        key_BKNH: Tensor,
        value_BKNH: Tensor,
        by_position_BQNH: Tensor | None,
        distance_GRNH: Tensor | None,
        segment_BQN: Tensor | None,
        plan: TilePlan,
    ) -> Tensor:
        """The attended values "B Q N H". segment_BQN: score added to keys in the query's own segment."""
        blocks, generator = plan.blocks(query_BQNH.shape[2]), np.random.SFC64(plan.seed or 0)
        scale = 1.0 if plan.seed is None else keep_scale(plan.rate, query_BQNH.dtype)
        attended_BQNH = torch.empty_like(query_BQNH)
        saved = []
        for at in blocks:
            key_nkH, value_nkH = _heads(key_BKNH, at), _heads(value_BKNH, at)
            scores_nqk = _scores(query_BQNH, key_nkH, by_position_BQNH, distance_GRNH, segment_BQN, plan, at)
            weights_nqk = torch.softmax(scores_nqk, dim=-1)
            if at.blind:
                # Zero fully masked queries, whose softmax is an average of the masked keys.
                weights_nqk.mul_(plan.mask[at.sample, at.q0 : at.q1, : at.k1].amax(dim=-1, keepdim=True) == 0)
            if plan.seed is None:
                kept_nqk = weights_nqk
            else:
                signs = dropout_sign_bits(generator, weights_nqk, plan.rate)
                weights_nqk.view(signs.dtype).bitwise_or_(signs)
                kept_nqk, value_nkH = torch.relu(weights_nqk), value_nkH * scale
            torch.bmm(kept_nqk, value_nkH, out=_queries(attended_BQNH, at))
            saved.append(weights_nqk)
        ctx.save_for_backward(query_BQNH, key_BKNH, value_BKNH, by_position_BQNH, distance_GRNH, segment_BQN, *saved)
        ctx.plan, ctx.blocks, ctx.scale = plan, blocks, scale
        return attended_BQNH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, by_position, distance, segment, *saved = ctx.saved_tensors
        plan: TilePlan = ctx.plan
        d_query, d_key, d_value = torch.empty_like(query), _zeros(key), _zeros(value)
        d_position = None if by_position is None else torch.empty_like(by_position)
        d_distance = None if distance is None else _zeros(distance, torch.float32)
        d_segment = None if segment is None else torch.zeros_like(segment)
        for at, weights_nqk in zip(ctx.blocks, saved, strict=True):
            d_attended_nqH = _queries(gradients[0], at) * ctx.scale
            d_weights_nqk = torch.bmm(d_attended_nqH, _heads(value, at).transpose(1, 2))
            kept_nqk = weights_nqk
            if plan.seed is not None:
                d_weights_nqk = torch.ops.aten.threshold_backward(d_weights_nqk, weights_nqk, 0)
                kept_nqk, weights_nqk = torch.relu(weights_nqk), weights_nqk.abs()
            _add_product(d_value[at.sample, at.n0 : at.n1, : at.k1], kept_nqk, d_attended_nqH)
            d_scores_nqk = torch._softmax_backward_data(d_weights_nqk, weights_nqk, -1, weights_nqk.dtype)
            torch.bmm(d_scores_nqk, _heads(key, at), out=_queries(d_query, at))
            _add_product(d_key[at.sample, at.n0 : at.n1, : at.k1], d_scores_nqk, _queries(query, at))
            if d_position is not None and d_distance is not None:
                _position_backward(d_scores_nqk, by_position, distance, d_position, d_distance, plan, at)
            if d_segment is not None and plan.positions is not None and plan.positions.same_segment is not None:
                same_qk = plan.positions.same_segment[at.sample, at.q0 : at.q1, : at.k1]
                d_segment[at.sample, at.q0 : at.q1, at.n0 : at.n1] = (d_scores_nqk * same_qk.to(key.dtype)).sum(-1).T
        return (
            d_query,
            d_key.transpose(1, 2),
            d_value.transpose(1, 2),
            d_position,
            None if d_distance is None else d_distance.to(distance.dtype).permute(0, 2, 1, 3),
            d_segment,
            None,
        )


def _heads(context_BKNH: Tensor, at: AttentionTile) -> Tensor:
    """Keys or values of a tile, "n k H", laid out so that a product with their transpose needs no copy."""
    return context_BKNH[at.sample, : at.k1, at.n0 : at.n1].transpose(0, 1).contiguous()


def _queries(query_BQNH: Tensor, at: AttentionTile) -> Tensor:
    """A view "n q H" of a tile's part of a tensor of queries or their outputs."""
    return query_BQNH[at.sample, at.q0 : at.q1, at.n0 : at.n1].transpose(0, 1)


def _add_product(total_nkH: Tensor, weights_nqk: Tensor, values_nqH: Tensor) -> None:
    """Add, for every key, the sum of the queries' values, weighted by `weights_nqk`."""
    torch.baddbmm(total_nkH, weights_nqk.transpose(1, 2), values_nqH, out=total_nkH)


def _zeros(like_BKNH: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros for accumulating gradients, with heads before keys."""
    samples, keys, heads, width = like_BKNH.shape
    return torch.zeros(samples, heads, keys, width, dtype=dtype or like_BKNH.dtype)


def _scores(
    query_BQNH: Tensor,
    key_nkH: Tensor,
    by_position_BQNH: Tensor | None,
    distance_GRNH: Tensor | None,
    segment_BQN: Tensor | None,
    plan: TilePlan,
    at: AttentionTile,
) -> Tensor:
    """The masked scores, without terms that are equal for all keys of a query, since they cancel in the softmax."""
    query_nqH = _queries(query_BQNH, at)
    if by_position_BQNH is None or distance_GRNH is None:
        scores_nqk = torch.bmm(query_nqH, key_nkH.transpose(1, 2))
    else:
        distance_nrH, predict = _distances(distance_GRNH, by_position_BQNH, plan, at)
        scores_nqr = torch.bmm(_queries(by_position_BQNH, at), distance_nrH.transpose(1, 2))
        if predict is None:
            by_key_nqk = relative_shift(scores_nqr[None], at.k1)[0]
        else:
            num_tokens = plan.predictions_from(query_BQNH.shape[1])
            by_key_nqk = gather_distances(scores_nqr[None], predict, num_tokens=num_tokens, num_keys=at.k1)[0]
        scores_nqk = torch.baddbmm(by_key_nqk, query_nqH, key_nkH.transpose(1, 2))
    if segment_BQN is not None and plan.positions is not None and plan.positions.same_segment is not None:
        same_qk = plan.positions.same_segment[at.sample, at.q0 : at.q1, : at.k1].to(scores_nqk.dtype)
        scores_nqk.addcmul_(same_qk, segment_BQN[at.sample, at.q0 : at.q1, at.n0 : at.n1].T[..., None])
    if at.masked:
        scores_nqk.add_(plan.mask[at.sample, at.q0 : at.q1, : at.k1])
    return scores_nqk


def _distances(
    distance_GRNH: Tensor, by_position_BQNH: Tensor, plan: TilePlan, at: AttentionTile
) -> tuple[Tensor, Tensor | None]:
    """The distances of a tile, "n r H", and, in the second stream, the positions of its queries, "1 q"."""
    positions = plan.positions
    assert positions is not None
    group = 0 if positions.reversed is None else int(positions.reversed[at.sample])
    distance_RnH = distance_GRNH[group, :, at.n0 : at.n1]
    num_tokens = plan.predictions_from(by_position_BQNH.shape[1])
    if at.q0 >= num_tokens:
        assert positions.target_positions is not None
        at_q = positions.target_positions[at.sample, at.q0 - num_tokens : at.q1 - num_tokens]
        return distance_RnH.transpose(0, 1).contiguous(), at_q[None]
    first = num_tokens - at.q1
    return distance_RnH[first : first + at.k1 + at.q1 - at.q0].transpose(0, 1).contiguous(), None


def _position_backward(
    d_scores_nqk: Tensor,
    by_position_BQNH: Tensor,
    distance_GRNH: Tensor,
    d_position_BQNH: Tensor,
    d_distance_GNRH: Tensor,
    plan: TilePlan,
    at: AttentionTile,
) -> None:
    """Propagate gradients from scores by key to scores by distance, then to queries and distances."""
    distance_nrH, predict = _distances(distance_GRNH, by_position_BQNH, plan, at)
    d_scores_nqr = d_scores_nqk.new_zeros(*d_scores_nqk.shape[:2], distance_nrH.shape[1])
    num_tokens, first = plan.predictions_from(by_position_BQNH.shape[1]), 0
    if predict is None:
        relative_shift(d_scores_nqr[None], at.k1)[0].copy_(d_scores_nqk)
        first = num_tokens - at.q1
    else:
        columns_q1 = num_tokens - predict[0, :, None]
        index = (columns_q1 + torch.arange(at.k1)).expand(len(d_scores_nqk), -1, -1)
        d_scores_nqr.scatter_(2, index, d_scores_nqk)
    torch.bmm(d_scores_nqr, distance_nrH, out=_queries(d_position_BQNH, at))
    group = 0 if plan.positions is None or plan.positions.reversed is None else int(plan.positions.reversed[at.sample])
    d_distance_GNRH[group, at.n0 : at.n1, first : first + distance_nrH.shape[1]] += torch.bmm(
        d_scores_nqr.transpose(1, 2), _queries(by_position_BQNH, at)
    )
