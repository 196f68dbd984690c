"""Relative positions: the distances between queries and keys, their encoding, and scores by distance put in place.

Legend: B rows, T new tokens, P predictions of a second stream, Q = T + P queries, M remembered positions, K = M + T
keys, N heads, D d_model, R distances K, K-1, .., of which 0 is the last (causal) or -(T-1) (bidirectional), G sets of
them: one, or two where rows may be read from right to left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RelativePositions:
    """The positions of queries and keys, the same for all layers."""

    distances: Float[Tensor, "G R D"]
    """Encoded: those of rows read from left to right; then, if there are any, those of the others."""
    reversed: Bool[Tensor, " B"] | None = None
    """Mask of the samples that are read from right to left."""
    target_positions: Int[Tensor, "B P"] | None = None
    """The positions of the last P queries; the first T stand at 0, 1, .., T-1."""
    same_segment: Bool[Tensor, "B Q K"] | None = None
    """Mask of pairs of query and key in one segment. None: all are."""


def clamped_distances(first: int, last: int, *, clamp_len: int | None, device: torch.device) -> Float[Tensor, " R"]:
    """The distances from `first` to `last` in steps of one; those beyond `clamp_len`, either way, are clamped to it."""
    step = 1 if first < last else -1
    distances = torch.arange(first, last + step, step, device=device, dtype=torch.float32)
    return distances if clamp_len is None else distances.clamp(-clamp_len, clamp_len)


def relative_shift(scores: Float[Tensor, "B N T R"], num_keys: int) -> Float[Tensor, "B N T K"]:
    """Scores by distance into scores by key, without a copy: out[.., t, k] = scores[.., t, T - t + k].

    Row t of the input holds the distances K, K-1, .. and query t stands at M + t, so key k is at distance M + t - k,
    which is column T - t + k. In a row-major matrix of R columns that element has the flat index
    t*R + T - t + k = T + t*(R-1) + k: dropping the first T elements and reading rows of R - 1 is the whole shift.
    Where the distances end at 0, keys after the query get elements of the next row, finite and without meaning: mask
    them.

    The distance K, which no query has, is what makes the rows come out whole; computing it (one more column of
    the product) spares the padding copy of the original.
    """
    *leading, num_queries, num_distances = scores.shape
    rows = scores.flatten(-2)[..., num_queries:].view(*leading, num_queries, num_distances - 1)
    return rows[..., :num_keys]


def gather_distances(
    scores: Float[Tensor, "B N P R"], predict: Int[Tensor, "B P"], *, num_tokens: int, num_keys: int
) -> Float[Tensor, "B N P K"]:
    """The same for queries at any positions: out[.., i, k] = scores[.., i, T - predict[i] + k]."""
    keys = torch.arange(num_keys, device=predict.device)
    columns = num_tokens - predict[:, None, :, None] + keys
    return scores.gather(3, columns.expand(-1, scores.shape[1], -1, -1))
