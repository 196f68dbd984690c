"""Relative positions: distances between queries and keys, their encoding, and the mapping of distance scores to keys.

Shapes: B samples, T new tokens, P predictions of a second stream, Q = T + P queries, M memory positions, K = M + T
keys, N heads, D d_model, R distances K, K-1, .. down to 0 (causal) or -(T-1) (bidirectional), G sets of distances: one,
or two if samples may be read from right to left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RelativePositions:
    """Relative positions of queries and keys, shared by all layers."""

    distances: Float[Tensor, "G R D"]
    """Encoded distances for samples read from left to right, then for those read from right to left, if any."""
    reversed: Bool[Tensor, " B"] | None = None
    """True for samples read from right to left."""
    target_positions: Int[Tensor, "B P"] | None = None
    """The positions of the last P queries; the first T are at 0, 1, .., T-1."""
    same_segment: Bool[Tensor, "B Q K"] | Float[Tensor, "B Q K"] | None = None
    """True if query and key are in the same segment; on accelerators 1 or 0, as a number. None: all are."""
    columns: Int[Tensor, "B P K"] | None = None
    """See `prediction_columns`; computed once for all layers, on accelerators only."""
    directions: Bool[Tensor, "B 2"] | None = None
    """See `directions`; computed once for all layers, on accelerators only."""


def clamped_distances(first: int, last: int, *, clamp_len: int | None, device: torch.device) -> Float[Tensor, " R"]:
    """The distances from `first` to `last` in steps of one, clamped to [-clamp_len, clamp_len]."""
    step = 1 if first < last else -1
    distances = torch.arange(first, last + step, step, device=device, dtype=torch.float32)
    return distances if clamp_len is None else distances.clamp(-clamp_len, clamp_len)


def directions(is_reversed: Bool[Tensor, " B"]) -> Bool[Tensor, "B 2"]:
    """True for the direction in which a sample is read: from left to right, or from right to left."""
    return torch.stack([~is_reversed, is_reversed], dim=1)


def side_by_side(distances: Float[Tensor, "G R N H"]) -> Float[Tensor, "R N J"]:
    """The distances of all directions in one vector: J = G*H."""
    return distances.permute(1, 2, 0, 3).flatten(2)


def in_directions(queries: Float[Tensor, "B Q N H"], positions: RelativePositions) -> Float[Tensor, "B Q N J"]:
    """Queries for distances that are `side_by_side`: each in the part of its sample's direction, zeros in the other.

    So one product serves both directions, and no distances are copied for each sample.
    """
    if positions.reversed is None:
        return queries
    directions_B2 = directions(positions.reversed) if positions.directions is None else positions.directions
    return (queries[..., None, :] * directions_B2[:, None, None, :, None]).flatten(-2)


def relative_shift(scores: Float[Tensor, "B N T R"], num_keys: int) -> Float[Tensor, "B N T K"]:
    """Convert scores by distance to scores by key, without a copy: out[.., t, k] = scores[.., t, T - t + k].

    Row t of the input holds the distances K, K-1, .. and query t is at position M + t, so key k is at distance
    M + t - k, which is column T - t + k. In a row-major matrix of R columns that element has the flat index
    t*R + T - t + k = T + t*(R-1) + k, so the shift is: drop the first T elements and read rows of R - 1.
    If the distances end at 0, keys after the query get elements of the next row, which are finite but meaningless and
    must be masked.

    No query has the distance K; it is computed (one more column of the product) so that the rows line up without the
    padding copy of the original.
    """
    *leading, num_queries, num_distances = scores.shape
    rows = scores.flatten(-2)[..., num_queries:].view(*leading, num_queries, num_distances - 1)
    return rows[..., :num_keys]


def gather_distances(
    scores: Float[Tensor, "B N P R"], predict: Int[Tensor, "B P"], *, num_tokens: int, num_keys: int
) -> Float[Tensor, "B N P K"]:
    """Like `relative_shift`, for queries at any positions: out[.., i, k] = scores[.., i, T - predict[i] + k]."""
    columns = prediction_columns(predict, num_tokens=num_tokens, num_keys=num_keys)
    return scores.gather(3, columns[:, None].expand(-1, scores.shape[1], -1, -1))


def prediction_columns(predict: Int[Tensor, "B P"], *, num_tokens: int, num_keys: int) -> Int[Tensor, "B P K"]:
    """The column of each key's distance from each prediction: T - predict[i] + k."""
    return num_tokens - predict[..., None] + torch.arange(num_keys, device=predict.device)


def whole_eights(num_distances: int, device: torch.device) -> int:
    """The number of distances to encode for this many: on an accelerator a multiple of 8, for aligned products."""
    return num_distances if device.type == "cpu" else -(-num_distances // 8) * 8
