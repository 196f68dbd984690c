"""The scores of relative attention by position and segment, with the mask, for accelerators, in one tensor.

Only the queries and the distances are kept for the backward pass, not the scores by distance. No gradient is scattered
with atomic additions. Shapes as in `relative_positions.py`; S is 2 (position and segment) or 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlpretrain.models.relative_positions import (
    RelativePositions,
    in_directions,
    prediction_columns,
    relative_shift,
    side_by_side,
)


class PositionBias(torch.autograd.Function):
    """scale * ((q + v) R[distance] + (q + s) (e[0] - e[1]) [same segment]) + mask, "B N Q K".

    The segment's term is that of `attention.py` less a number that is equal for all keys of a query, which cancels in
    the softmax.
    """

    @staticmethod
    def forward(
        ctx: Any,
        by_position_BQNH: Tensor,
        distance_GRNH: Tensor,
        by_segment_BQNH: Tensor | None,
        segment_2NH: Tensor | None,
        mask_BQK: Tensor,
        positions: RelativePositions,
        scale: float,
    ) -> Tensor:
        """The scores that attention adds to those by content."""
        batch_size, num_queries, num_heads, _ = by_position_BQNH.shape
        num_tokens, num_keys = num_queries - _num_predictions(positions), mask_BQK.shape[2]
        queries_BQNJ = in_directions(by_position_BQNH, positions)
        distances_NRJ = side_by_side(distance_GRNH).transpose(0, 1)
        scores = _product(_rows(queries_BQNJ), distances_NRJ.mT, scale)
        scores_BNQR = _split(scores, num_heads, batch_size)
        added_BNQK = scores_BNQR.new_empty(batch_size, num_heads, num_queries, num_keys)
        shifted_BNTK = relative_shift(scores_BNQR[:, :, :num_tokens], num_keys)
        torch.add(shifted_BNTK, mask_BQK[:, None, :num_tokens], out=added_BNQK[:, :, :num_tokens])
        columns_BPK = _columns(positions, num_tokens, num_keys)
        if columns_BPK is not None:
            gathered_BNPK = scores_BNQR[:, :, num_tokens:].gather(3, columns_BPK[:, None].expand(-1, num_heads, -1, -1))
            torch.add(gathered_BNPK, mask_BQK[:, None, num_tokens:], out=added_BNQK[:, :, num_tokens:])
        difference_NH = None if segment_2NH is None else segment_2NH[0] - segment_2NH[1]
        if positions.same_segment is not None and by_segment_BQNH is not None and difference_NH is not None:
            more_NQ1 = _product(_rows(by_segment_BQNH), difference_NH[..., None], scale)
            same_BQK = positions.same_segment.to(added_BNQK.dtype)
            added_BNQK.addcmul_(same_BQK[:, None], _split(more_NQ1, num_heads, batch_size))
        ctx.save_for_backward(queries_BQNJ, distances_NRJ, by_segment_BQNH, difference_NH)
        ctx.positions, ctx.scale = positions, scale
        return added_BNQK

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries_BQNJ, distances_NRJ, by_segment_BQNH, difference_NH = ctx.saved_tensors
        d_position_BQNH, d_distance_GRNH = _position_backward(
            gradients[0], queries_BQNJ, distances_NRJ, ctx.positions, ctx.scale
        )
        d_segment: tuple[Tensor | None, Tensor | None] = (None, None)
        if by_segment_BQNH is not None:
            d_segment = _segment_backward(gradients[0], by_segment_BQNH, difference_NH, ctx.positions, ctx.scale)
        return d_position_BQNH, d_distance_GRNH, *d_segment, None, None, None


def _position_backward(
    d_added_BNQK: Tensor,
    queries_BQNJ: Tensor,
    distances_NRJ: Tensor,
    positions: RelativePositions,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch_size, num_heads, num_queries, num_keys = d_added_BNQK.shape
    num_tokens, queries = num_queries - _num_predictions(positions), _rows(queries_BQNJ)
    d_scores = queries.new_zeros(*queries.shape[:2], distances_NRJ.shape[1])
    d_scores_BNQR = _split(d_scores, num_heads, batch_size)
    relative_shift(d_scores_BNQR[:, :, :num_tokens], num_keys).copy_(d_added_BNQK[:, :, :num_tokens])
    columns_BPK = _columns(positions, num_tokens, num_keys)
    if columns_BPK is not None:
        columns_BNPK = columns_BPK[:, None].expand(-1, num_heads, -1, -1)
        d_scores_BNQR[:, :, num_tokens:].scatter_(3, columns_BNPK, d_added_BNQK[:, :, num_tokens:])
    d_queries_BQNJ, d_distances_NRJ = torch.empty_like(queries_BQNJ), torch.empty_like(distances_NRJ)
    _product(d_scores, distances_NRJ, scale, _rows(d_queries_BQNJ))
    _product(d_scores.mT, queries, scale, d_distances_NRJ)
    num_directions = 1 if positions.reversed is None else 2
    d_distance_GRNH = d_distances_NRJ.view(*d_distances_NRJ.shape[:2], num_directions, -1).permute(2, 1, 0, 3)
    if positions.reversed is None:
        return d_queries_BQNJ, d_distance_GRNH
    forward_BQNH, backward_BQNH = d_queries_BQNJ.chunk(2, dim=-1)
    return torch.where(positions.reversed[:, None, None, None], backward_BQNH, forward_BQNH), d_distance_GRNH


def _segment_backward(
    d_added_BNQK: Tensor, by_segment_BQNH: Tensor, difference_NH: Tensor, positions: RelativePositions, scale: float
) -> tuple[Tensor | None, Tensor]:
    if positions.same_segment is None:
        return None, difference_NH.new_zeros(2, *difference_NH.shape)
    batch_size, num_heads, num_queries, _ = d_added_BNQK.shape
    same_BQK = positions.same_segment.to(d_added_BNQK.dtype)
    d_more_NBQ = d_added_BNQK.new_empty(num_heads, batch_size, num_queries)
    torch.sum(d_added_BNQK * same_BQK[:, None], dim=-1, out=d_more_NBQ.transpose(0, 1))
    d_more_NQ1 = d_more_NBQ.view(num_heads, -1, 1)
    d_queries_NQH = _product(d_more_NQ1, difference_NH[:, None], scale)
    d_segment_2NH = difference_NH.new_empty(2, *difference_NH.shape)
    d_segment_2NH[0, :, None].baddbmm_(d_more_NQ1.mT, _rows(by_segment_BQNH), beta=0, alpha=scale)
    torch.neg(d_segment_2NH[0], out=d_segment_2NH[1])
    return _split(d_queries_NQH, num_heads, batch_size).transpose(1, 2), d_segment_2NH


def _num_predictions(positions: RelativePositions) -> int:
    return 0 if positions.target_positions is None else positions.target_positions.shape[1]


def _columns(positions: RelativePositions, num_tokens: int, num_keys: int) -> Tensor | None:
    if positions.columns is not None or positions.target_positions is None:
        return positions.columns
    return prediction_columns(positions.target_positions, num_tokens=num_tokens, num_keys=num_keys)


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale * left right, for each leading index."""
    if out is None:
        out = left.new_empty(*left.shape[:2], right.shape[2])
    return out.baddbmm_(left, right, beta=0, alpha=scale)


def _rows(query_BQNH: Tensor) -> Tensor:
    """All queries of each head, "N B*Q J"."""
    return query_BQNH.flatten(0, 1).transpose(0, 1)


def _split(product: Tensor, num_heads: int, batch_size: int) -> Tensor:
    """View "N B*Q J" as "B N Q J"."""
    return product.view(num_heads, batch_size, -1, product.shape[2]).transpose(0, 1)
