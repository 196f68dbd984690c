"""Triton programs of fused relative attention: forward; gradients of queries and positions; of keys and values.

Imported only where Triton is installed. Tensors are contiguous; their shapes, with the letters of
`relative_positions.py` and H for the width of a head:

    query, output: B Q N H      key, value: B K N H      position (scores by distance): N B Q R
    segment: N B Q 2            normalizer, delta: N B Q (fp32)
    queries: 3 B Q (rank, column, segment; int32)        keys: 2 B K (rank, segment; int32)      seed: 2 (int32)

A query sees the keys whose rank is at most its own. Key k has the position score of column `column + k`. With WINDOW, a
query also sees no key at or before its own position in the memory's coordinates; with NOT_OWN, a prediction does not
see the token at its own position. Scores are in fp32 and multiplied by log2(e), so that exp2 can be used; `normalizer`
is the log2 of the sum of a query's exponentials, infinite if it sees nothing. The method is that of FlashAttention-2
(arXiv:2307.08691), with a term by position and one by segment.

Nothing is added atomically: every program writes what no other one writes, so results are the same in every bit.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NEVER = tl.constexpr(2147483647)  # rank of keys that no query sees; also `visibility.NEVER`
NOWHERE = tl.constexpr(-2147483648)  # rank of rows that are no queries
SCANNED = tl.constexpr(512)  # ranks read at once, to find what can be skipped


@triton.jit
@no_type_check
def _product(left, right, sums, PRECISION: tl.constexpr):
    """A matrix product, added to `sums`. Triton's interpreter cannot multiply bf16, so it widens (the same product)."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(left, right, sums, input_precision=PRECISION)


@triton.jit
@no_type_check
def _mixed(number, inner):
    """A bijection of 32-bit integers that looks random (Wellons' lowbias32), with another integer stirred in."""
    number ^= number >> 16
    number *= 0x7FEB352D
    number ^= (number >> 15) ^ inner
    number *= 0x846CA68B
    return number ^ (number >> 16)


@triton.jit
@no_type_check
def _row_keys(row, seed):
    """Two random numbers for each row of scores."""
    low, high = tl.load(seed).to(tl.uint32), tl.load(seed + 1).to(tl.uint32)
    first = _mixed(row.to(tl.uint32) ^ low, high)
    return first, _mixed(first ^ high, low)


@triton.jit
@no_type_check
def _kept(first, second, key, threshold):
    """True where a weight is kept: a function of the seed, the row and the key, not of the tile."""
    number = _mixed(key.to(tl.uint32) * 0x9E3779B9 ^ first, second)
    return (number >> 1).to(tl.int32) >= threshold


@triton.jit
@no_type_check
def _bias(position, segment_same, segment_other, same, SEGMENTS: tl.constexpr):
    """The scores by position, read skewed, and by segment, before scaling.

    Nothing bounds the reading: past the end of a row are numbers of the next one, and past the last row there is room
    (see `operators.py`). All of those are of keys that the query does not see.
    """
    score = tl.load(position).to(tl.float32)
    if SEGMENTS:
        score += tl.where(same, segment_same, segment_other)
    return score


@triton.jit
@no_type_check
def _inside(at, count, h, H: tl.constexpr, HP: tl.constexpr):
    """Mask of loads and stores: rows that exist, and columns within the head if that is narrower than the tile."""
    inside = at < count
    if H != HP:
        inside = inside & (h < H)
    return inside


@triton.jit
@no_type_check
def _visible(query_rank, key_rank, query, key, column, K, T, WINDOW: tl.constexpr, NOT_OWN: tl.constexpr):
    seen = key_rank <= query_rank
    if WINDOW:
        seen = seen & (key + column > T)
    if NOT_OWN:
        seen = seen & ((query < T) | (key + column != K))
    return seen


@triton.jit
@no_type_check
def _keys_seen(ranks, count, highest):
    """The first and the last + 1 of the keys whose rank is at most `highest`."""
    first, last = count, 0
    for start in range(0, count, SCANNED):
        at = start + tl.arange(0, SCANNED)
        seen = tl.load(ranks + at, mask=at < count, other=NEVER) <= highest
        first = tl.minimum(first, tl.min(tl.where(seen, at, count)))
        last = tl.maximum(last, tl.max(tl.where(seen, at + 1, 0)))
    return first, last


@triton.jit
@no_type_check
def _queries_seeing(ranks, count, lowest):
    """The first and the last + 1 of the queries whose rank is at least `lowest`."""
    first, last = count, 0
    for start in range(0, count, SCANNED):
        at = start + tl.arange(0, SCANNED)
        seeing = tl.load(ranks + at, mask=at < count, other=NOWHERE) >= lowest
        first = tl.minimum(first, tl.min(tl.where(seeing, at, count)))
        last = tl.maximum(last, tl.max(tl.where(seeing, at + 1, 0)))
    return first, last


@triton.jit
@no_type_check
def _zero_columns(gradient, skewed, column, end, first, last, BK: tl.constexpr):
    """Zero the gradient of the position scores of keys from `first` to `last`, which may be keys that do not exist."""
    for start in range(first, last, BK):
        k = start + tl.arange(0, BK)[None, :]
        mask = (k >= -column[:, None]) & (k < end[:, None]) & (k < last)
        zero = tl.zeros(k.shape, tl.float32).to(gradient.dtype.element_ty)
        tl.store(gradient + skewed[:, None] + k, zero, mask=mask)


@triton.jit
@no_type_check
def forward(
    query, key, value, position, segment, queries, keys, seed, output, normalizer,
    B, N, Q, K, R, T, threshold, keep_scale, scale,
    H: tl.constexpr, HP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    WINDOW: tl.constexpr, NOT_OWN: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The output of BQ queries of one head of one sample, and their normalizers."""
    tiles = tl.cdiv(Q, BQ)
    tile = tiles - 1 - tl.program_id(0) % tiles  # in a causal model the last one has most to do
    sample, head = tl.program_id(0) // tiles // N, tl.program_id(0) // tiles % N
    q, h = tile * BQ + tl.arange(0, BQ), tl.arange(0, HP)
    rows = (head * B + sample).to(tl.int64) * Q
    queries += sample * Q
    keys += sample * K
    rank = tl.load(queries + q, mask=q < Q, other=NOWHERE)
    column = tl.load(queries + B * Q + q, mask=q < Q, other=0)
    position += rows * R
    skewed = q * R + column  # where the score of key 0 is
    at_query = sample.to(tl.int64) * Q * N * H + head * H + q[:, None] * (N * H) + h[None, :]
    at_key = sample.to(tl.int64) * K * N * H + head * H
    query_tile = tl.load(query + at_query, mask=_inside(q[:, None], Q, h[None, :], H, HP), other=0.0)
    query_segment, same_score, other_score = column, 0.0, 0.0
    if SEGMENTS:
        query_segment = tl.load(queries + 2 * B * Q + q, mask=q < Q, other=0)
        same_score = tl.load(segment + (rows + q) * 2, mask=q < Q, other=0.0).to(tl.float32)[:, None]
        other_score = tl.load(segment + (rows + q) * 2 + 1, mask=q < Q, other=0.0).to(tl.float32)[:, None]
    if DROPOUT:
        first_key, second_key = _row_keys(rows + q, seed)
    highest, total = tl.full([BQ], float("-inf"), tl.float32), tl.zeros([BQ], tl.float32)
    sums = tl.zeros([BQ, HP], tl.float32)
    first, last = _keys_seen(keys, K, tl.max(rank))
    if WINDOW:
        first = tl.maximum(first, tile * BQ + 1)
    for start in range(first // BK * BK, last, BK):
        k = start + tl.arange(0, BK)
        key_rank = tl.load(keys + k, mask=k < K, other=NEVER)
        same = rank[:, None] == key_rank[None, :]
        if SEGMENTS:
            same = query_segment[:, None] == tl.load(keys + B * K + k, mask=k < K, other=0)[None, :]
        key_tile = tl.load(
            key + at_key + k[None, :] * (N * H) + h[:, None], mask=_inside(k[None, :], K, h[:, None], H, HP), other=0.0
        )
        column = tl.load(queries + B * Q + q, mask=q < Q, other=0)
        skewed = q * R + column
        score = _bias(position + skewed[:, None] + k[None, :], same_score, other_score, same, SEGMENTS)
        score = _product(query_tile, key_tile, score, PRECISION)
        seen = _visible(
            rank[:, None], key_rank[None, :], q[:, None], k[None, :], column[:, None], K, T, WINDOW, NOT_OWN
        )
        score = tl.where(seen, score * (scale * LOG2E), float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - finite[:, None])
        factor = tl.exp2(highest - finite)
        total = total * factor + tl.sum(weight, 1)
        if DROPOUT:
            weight = tl.where(_kept(first_key[:, None], second_key[:, None], k[None, :], threshold), weight, 0.0)
        value_tile = tl.load(
            value + at_key + k[:, None] * (N * H) + h[None, :],
            mask=_inside(k[:, None], K, h[None, :], H, HP),
            other=0.0,
        )
        sums = _product(weight.to(value_tile.dtype), value_tile, sums * factor[:, None], PRECISION)
        highest = higher
    sees = total > 0
    sums = sums * tl.where(sees, keep_scale / tl.where(sees, total, 1.0), 0.0)[:, None]
    tl.store(output + at_query, sums.to(output.dtype.element_ty), mask=_inside(q[:, None], Q, h[None, :], H, HP))
    log_total = tl.where(sees, highest + tl.log2(tl.where(sees, total, 1.0)), float("inf"))
    tl.store(normalizer + rows + q, log_total, mask=q < Q)


@triton.jit
@no_type_check
def backward_queries(
    query, key, value, position, segment, queries, keys, seed, output, normalizer, d_output,
    d_query, d_position, d_segment, delta,
    B, N, Q, K, R, T, threshold, keep_scale, scale,
    H: tl.constexpr, HP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    WINDOW: tl.constexpr, NOT_OWN: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of BQ queries of one head of one sample, of all their scores by position, and of those by segment.

    Also writes `delta`, the inner product of the output and its gradient, which `backward_keys` needs.
    """
    tiles = tl.cdiv(Q, BQ)
    tile = tiles - 1 - tl.program_id(0) % tiles
    sample, head = tl.program_id(0) // tiles // N, tl.program_id(0) // tiles % N
    q, h = tile * BQ + tl.arange(0, BQ), tl.arange(0, HP)
    rows = (head * B + sample).to(tl.int64) * Q
    queries += sample * Q
    keys += sample * K
    rank = tl.load(queries + q, mask=q < Q, other=NOWHERE)
    column = tl.load(queries + B * Q + q, mask=q < Q, other=0)
    position += rows * R
    skewed = q * R + column  # where the score of key 0 is
    at_query = sample.to(tl.int64) * Q * N * H + head * H + q[:, None] * (N * H) + h[None, :]
    at_key = sample.to(tl.int64) * K * N * H + head * H
    mask_query = _inside(q[:, None], Q, h[None, :], H, HP)
    query_tile = tl.load(query + at_query, mask=mask_query, other=0.0)
    d_tile = tl.load(d_output + at_query, mask=mask_query, other=0.0)
    inner = tl.sum(tl.load(output + at_query, mask=mask_query, other=0.0).to(tl.float32) * d_tile.to(tl.float32), 1)
    tl.store(delta + rows + q, inner, mask=q < Q)
    log_total = tl.load(normalizer + rows + q, mask=q < Q, other=float("inf"))
    query_segment, same_score, other_score = column, 0.0, 0.0
    d_same, d_other = tl.zeros([BQ], tl.float32), tl.zeros([BQ], tl.float32)
    if SEGMENTS:
        query_segment = tl.load(queries + 2 * B * Q + q, mask=q < Q, other=0)
        same_score = tl.load(segment + (rows + q) * 2, mask=q < Q, other=0.0).to(tl.float32)[:, None]
        other_score = tl.load(segment + (rows + q) * 2 + 1, mask=q < Q, other=0.0).to(tl.float32)[:, None]
    if DROPOUT:
        first_key, second_key = _row_keys(rows + q, seed)
    sums = tl.zeros([BQ, HP], tl.float32)
    first, last = _keys_seen(keys, K, tl.max(rank))
    if WINDOW:
        first = tl.maximum(first, tile * BQ + 1)
    first = first // BK * BK
    last = tl.maximum(first, first + tl.cdiv(last - first, BK) * BK)
    d_position += rows * R
    end = tl.where(q < Q, R - column, -R)  # 1 + the last key, real or not, that has a column
    _zero_columns(d_position, skewed, column, end, -tl.max(column), first, BK)
    _zero_columns(d_position, skewed, column, end, last, tl.max(end), BK)
    for start in range(first, last, BK):
        k = start + tl.arange(0, BK)
        key_rank = tl.load(keys + k, mask=k < K, other=NEVER)
        same = rank[:, None] == key_rank[None, :]
        if SEGMENTS:
            same = query_segment[:, None] == tl.load(keys + B * K + k, mask=k < K, other=0)[None, :]
        at = at_key + k[None, :] * (N * H) + h[:, None]
        mask_key = _inside(k[None, :], K, h[:, None], H, HP)
        key_tile = tl.load(key + at, mask=mask_key, other=0.0)
        column = tl.load(queries + B * Q + q, mask=q < Q, other=0)
        skewed = q * R + column
        score = _bias(position + skewed[:, None] + k[None, :], same_score, other_score, same, SEGMENTS)
        score = _product(query_tile, key_tile, score, PRECISION)
        seen = _visible(
            rank[:, None], key_rank[None, :], q[:, None], k[None, :], column[:, None], K, T, WINDOW, NOT_OWN
        )
        weight = tl.exp2(tl.where(seen, score * (scale * LOG2E) - log_total[:, None], float("-inf")))
        d_weight = _product(
            d_tile, tl.load(value + at, mask=mask_key, other=0.0), tl.zeros([BQ, BK], tl.float32), PRECISION
        )
        if DROPOUT:
            kept = _kept(first_key[:, None], second_key[:, None], k[None, :], threshold)
            d_weight = tl.where(kept, d_weight * keep_scale, 0.0)
        d_score = weight * (d_weight - inner[:, None]) * scale
        if SEGMENTS:
            d_same += tl.sum(tl.where(same, d_score, 0.0), 1)
            d_other += tl.sum(tl.where(same, 0.0, d_score), 1)
        d_rounded = d_score.to(key_tile.dtype)
        tl.store(
            d_position + skewed[:, None] + k[None, :],
            d_rounded,
            mask=k[None, :] < tl.where(q < Q, R - column, -R)[:, None],
        )
        sums = _product(d_rounded, tl.trans(key_tile), sums, PRECISION)
    tl.store(d_query + at_query, sums.to(d_query.dtype.element_ty), mask=mask_query)
    if SEGMENTS:
        tl.store(d_segment + (rows + q) * 2, d_same.to(d_segment.dtype.element_ty), mask=q < Q)
        tl.store(d_segment + (rows + q) * 2 + 1, d_other.to(d_segment.dtype.element_ty), mask=q < Q)


@triton.jit
@no_type_check
def backward_keys(
    query, key, value, position, segment, queries, keys, seed, normalizer, d_output, delta,
    d_key, d_value,
    B, N, Q, K, R, T, threshold, keep_scale, scale,
    H: tl.constexpr, HP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    WINDOW: tl.constexpr, NOT_OWN: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of BK keys and values of one head of one sample. Tiles of scores are transposed: keys by queries."""
    tiles = tl.cdiv(K, BK)
    tile = tl.program_id(0) % tiles
    sample, head = tl.program_id(0) // tiles // N, tl.program_id(0) // tiles % N
    k, h = tile * BK + tl.arange(0, BK), tl.arange(0, HP)
    rows = (head * B + sample).to(tl.int64) * Q
    queries += sample * Q
    keys += sample * K
    position += rows * R
    key_rank = tl.load(keys + k, mask=k < K, other=NEVER)
    key_segment = key_rank
    if SEGMENTS:
        key_segment = tl.load(keys + B * K + k, mask=k < K, other=0)
    at_query = sample.to(tl.int64) * Q * N * H + head * H
    at_key = sample.to(tl.int64) * K * N * H + head * H + k[:, None] * (N * H) + h[None, :]
    mask_key = _inside(k[:, None], K, h[None, :], H, HP)
    key_tile = tl.load(key + at_key, mask=mask_key, other=0.0)
    value_tile = tl.load(value + at_key, mask=mask_key, other=0.0)
    key_sums, value_sums = tl.zeros([BK, HP], tl.float32), tl.zeros([BK, HP], tl.float32)
    first, last = _queries_seeing(queries, Q, tl.min(key_rank))
    if WINDOW:
        last = tl.minimum(last, tile * BK + BK - 1)
    for start in range(first // BQ * BQ, last, BQ):
        q = start + tl.arange(0, BQ)
        rank = tl.load(queries + q, mask=q < Q, other=NOWHERE)
        column = tl.load(queries + B * Q + q, mask=q < Q, other=0)
        log_total = tl.load(normalizer + rows + q, mask=q < Q, other=float("inf"))
        inner = tl.load(delta + rows + q, mask=q < Q, other=0.0)
        same, same_score, other_score = key_rank[:, None] == rank[None, :], 0.0, 0.0
        if SEGMENTS:
            same = key_segment[:, None] == tl.load(queries + 2 * B * Q + q, mask=q < Q, other=0)[None, :]
            same_score = tl.load(segment + (rows + q) * 2, mask=q < Q, other=0.0).to(tl.float32)[None, :]
            other_score = tl.load(segment + (rows + q) * 2 + 1, mask=q < Q, other=0.0).to(tl.float32)[None, :]
        at = at_query + q[:, None] * (N * H) + h[None, :]
        mask_query = _inside(q[:, None], Q, h[None, :], H, HP)
        query_tile = tl.load(query + at, mask=mask_query, other=0.0)
        score = _bias(position + (q * R + column)[None, :] + k[:, None], same_score, other_score, same, SEGMENTS)
        score = _product(key_tile, tl.trans(query_tile), score, PRECISION)
        seen = _visible(
            rank[None, :], key_rank[:, None], q[None, :], k[:, None], column[None, :], K, T, WINDOW, NOT_OWN
        )
        weight = tl.exp2(tl.where(seen, score * (scale * LOG2E) - log_total[None, :], float("-inf")))
        d_tile = tl.load(d_output + at, mask=mask_query, other=0.0)
        d_weight = _product(value_tile, tl.trans(d_tile), tl.zeros([BK, BQ], tl.float32), PRECISION)
        used = weight
        if DROPOUT:
            first_key, second_key = _row_keys(rows + q, seed)
            kept = _kept(first_key[None, :], second_key[None, :], k[:, None], threshold)
            used = tl.where(kept, weight * keep_scale, 0.0)
            d_weight = tl.where(kept, d_weight * keep_scale, 0.0)
        value_sums = _product(used.to(d_tile.dtype), d_tile, value_sums, PRECISION)
        d_score = weight * (d_weight - inner[None, :]) * scale
        key_sums = _product(d_score.to(query_tile.dtype), query_tile, key_sums, PRECISION)
    tl.store(d_key + at_key, key_sums.to(d_key.dtype.element_ty), mask=mask_key)
    tl.store(d_value + at_key, value_sums.to(d_value.dtype.element_ty), mask=mask_key)
