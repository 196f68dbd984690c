"""Keys that each query may attend, as small vectors: a query sees the keys whose rank is at most its own.

A fused kernel compares ranks tile by tile, so no mask of B x Q x K is made. Shapes as in `relative_positions.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int32
from torch import Tensor

from xlpretrain.models.backbone import BackboneInput

NEVER = 2**31 - 1
"""Rank of a key that no query sees."""
_ALWAYS = -(2**31) + 1
"""Rank of a key that every query sees."""


@dataclass(frozen=True)
class Visibility:
    """The contents of `attention_mask` and of parts of `RelativePositions`, without a matrix."""

    queries: Int32[Tensor, "3 B Q"]
    """Each query's rank, the column of its score by position for key 0 (T - position), and its segment. The first T are
    the tokens, at the positions 0, 1, .., T - 1."""
    keys: Int32[Tensor, "2 B K"]
    """Each key's rank and segment."""
    directions: Int32[Tensor, " B"] | None
    """The set of distances of each sample: 1 if it is read from right to left. None: there is one set."""
    num_tokens: int
    """T: the queries before the predictions."""
    window: bool
    """True if a query sees no key at or before its own index (Transformer-XL's `same_length`)."""
    not_own: bool
    """True if a prediction sees any token but the one at its own position: there is no factorization order."""


def visibility(
    inputs: BackboneInput, *, mem_len: int, causal: bool, same_length: bool = False, initial_zeros: bool = False
) -> Visibility:
    """The same as `attention_mask`, with the same arguments."""
    tokens, order, predict = inputs.tokens, inputs.perm_rank, inputs.target_positions
    batch_size, num_tokens = tokens.shape
    positions = torch.arange(num_tokens, device=tokens.device).expand(batch_size, -1)
    if causal:
        assert order is None and predict is None, "a causal model has one order"
        order = positions
    elif order is None:
        order = torch.zeros_like(positions)
    key_rank = order if inputs.attention_mask is None else order.masked_fill(~inputs.attention_mask, NEVER)
    ages = torch.arange(mem_len, 0, -1, device=tokens.device)
    remembered = (ages <= inputs.mem_valid_len[:, None]) | initial_zeros
    memory_rank = torch.where(remembered, _ALWAYS, NEVER)
    segments = torch.zeros_like(positions) if inputs.segments is None else inputs.segments
    queries = torch.stack([order, num_tokens - positions, segments])
    if predict is not None:
        own = 0 if inputs.perm_rank is None else 1
        predictions = torch.stack([order.gather(1, predict) - own, num_tokens - predict, segments.gather(1, predict)])
        queries = torch.cat([queries, predictions], dim=2)
    keys = torch.stack(
        [torch.cat([memory_rank, key_rank], dim=1), torch.nn.functional.pad(segments, (mem_len, 0))],
    )
    return Visibility(
        queries.int(),
        keys.int(),
        None if inputs.reversed is None else inputs.reversed.int(),
        num_tokens=num_tokens,
        window=same_length and mem_len > 0,
        not_own=predict is not None and inputs.perm_rank is None,
    )
