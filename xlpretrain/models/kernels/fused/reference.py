"""Fused relative attention written down: the formula, and the weights that are dropped; for tests and a check.

Shapes as in `operators.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlpretrain.models.kernels.fused.visibility import Visibility

_LOW = 2**32 - 1


def attention_written_down(
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
    seed: Int[Tensor, " 2"] | None = None,
) -> Tensor:
    """The same as `fused_relative_attention`, with the same arguments, through matrices of B x N x Q x K."""
    scores_BNQK = torch.einsum("bqnh,bknh->bnqk", query_BQNH, key_BKNH)
    if view.directions is None:
        scores_BNQR = torch.einsum("bqnh,rnh->bnqr", by_position_BQNH, distance_GRNH[0])
    else:
        scores_BNQR = torch.einsum("bqnh,brnh->bnqr", by_position_BQNH, distance_GRNH[view.directions.long()])
    keys = torch.arange(key_BKNH.shape[1], device=query_BQNH.device)
    columns_BQK = (view.queries[1].long()[..., None] + keys).clamp(max=distance_GRNH.shape[1] - 1)
    scores_BNQK = scores_BNQK + scores_BNQR.gather(3, columns_BQK[:, None].expand_as(scores_BNQK))
    if segment_NBQ2 is not None:
        same_BQK = view.queries[2][..., None] == view.keys[1][:, None]
        same_NBQ1, other_NBQ1 = segment_NBQ2[..., None].unbind(3)
        scores_BNQK = scores_BNQK + torch.where(same_BQK, same_NBQ1, other_NBQ1).transpose(0, 1)
    seen_B1QK = visible(view)[:, None]
    hidden = torch.finfo(scores_BNQK.dtype).min / 2
    weights_BNQK = (scores_BNQK * scale).masked_fill(~seen_B1QK, hidden).softmax(-1) * seen_B1QK
    if seed is not None and rate > 0:
        weights_BNQK = weights_BNQK * kept_weights(seed, rate, weights_BNQK) / (1 - rate)
    return torch.einsum("bnqk,bknh->bqnh", weights_BNQK, value_BKNH)


def visible(view: Visibility) -> Bool[Tensor, "B Q K"]:
    """Mask of the keys that each query sees (True)."""
    rank_BQ1, column_BQ1 = view.queries[0][..., None], view.queries[1][..., None]
    key_B1K = view.keys[0][:, None]
    num_keys = key_B1K.shape[2]
    at_K, tokens_Q1 = torch.arange(num_keys).to(key_B1K), torch.arange(rank_BQ1.shape[1]).to(key_B1K)[:, None]
    seen_BQK = key_B1K <= rank_BQ1
    if view.window:
        seen_BQK = seen_BQK & (at_K + column_BQ1 > view.num_tokens)
    if view.not_own:
        seen_BQK = seen_BQK & ((tokens_Q1 < view.num_tokens) | (at_K + column_BQ1 != num_keys))
    return seen_BQK


def kept_weights(seed: Int[Tensor, " 2"], rate: float, weights_BNQK: Tensor) -> Bool[Tensor, "B N Q K"]:
    """Mask of the weights that are not dropped: see `programs.py`."""
    batch_size, num_heads, num_queries, num_keys = weights_BNQK.shape
    low, high = (seed.long() & _LOW).unbind()
    rows = torch.arange(num_heads * batch_size * num_queries, device=seed.device)
    first = _mixed(rows ^ low, high)
    second = _mixed(first ^ high, low)
    keys = torch.arange(num_keys, device=seed.device) * 0x9E3779B9 & _LOW
    numbers = _mixed(keys ^ first[:, None], second[:, None]).view(num_heads, batch_size, num_queries, num_keys)
    return (numbers >> 1 >= round(rate * 2**31)).transpose(0, 1)


def _mixed(number: Tensor, inner: Tensor) -> Tensor:
    number = number ^ (number >> 16)
    number = number * 0x7FEB352D & _LOW
    number = number ^ (number >> 15) ^ inner
    number = number * 0x846CA68B & _LOW
    return number ^ (number >> 16)
