"""Gradients of the keys and values of fused relative attention."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from xlpretrain.models.kernels.fused.programs.parts import (
    NEVER,
    NOWHERE,
    block,
    block_or_zeros,
    distances_of,
    in_base_2,
    inside,
    kept,
    product,
    queries_seeing,
    rotated,
    row_keys,
    visible,
)


@triton.jit
@no_type_check
def backward_keys(
    query, key, value, by_position, distance, position, segment, queries, keys, directions, seed,
    normalizer, d_output, delta, d_key, d_value,
    B, N, Q, K, R, T, S, threshold, keep_scale, scale,
    H: tl.constexpr, HP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    WINDOW: tl.constexpr, NOT_OWN: tl.constexpr, DROPOUT: tl.constexpr, DIRECTIONS: tl.constexpr,
    BAND: tl.constexpr, MEMORY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of BK keys and values of one head of one sample, over the queries of BAND, those of MEMORY, or both."""
    tiles = tl.cdiv(K, BK)
    tile = tl.program_id(0) % tiles
    sample, head = tl.program_id(0) // tiles // N, tl.program_id(0) // tiles % N
    k, h = tile * BK + tl.arange(0, BK), tl.arange(0, HP)
    rows = (head * B + sample).to(tl.int64) * Q
    queries += sample * Q
    keys += sample * K
    key_rank = tl.load(keys + k, mask=k < K, other=NEVER)
    key_segment = key_rank
    if SEGMENTS:
        key_segment = tl.load(keys + B * K + k, mask=k < K, other=0)
    segment += rows * 2
    normalizer += rows
    delta += rows
    first_query = sample.to(tl.int64) * Q * N * H + head * H
    query += first_query
    by_position += first_query
    d_output += first_query
    at_key = sample.to(tl.int64) * K * N * H + head * H + k[:, None] * (N * H) + h[None, :]
    mask_key = inside(k[:, None], K, h[None, :], H, HP)
    key_tile = tl.load(key + at_key, mask=mask_key, other=0.0)
    value_tile = tl.load(value + at_key, mask=mask_key, other=0.0)
    distance = distances_of(distance, directions, sample, head, N, R, H, DIRECTIONS)
    position += ((head * B + sample).to(tl.int64) * (Q - S) - S) * R
    key_sums, value_sums = tl.zeros([BK, HP], tl.float32), tl.zeros([BK, HP], tl.float32)
    if BAND:
        first, last = queries_seeing(queries, 0, S, tl.min(key_rank))
        if WINDOW:
            last = tl.minimum(last, tile * BK + BK - 1)
        for start in range(first // BQ * BQ, last, BQ):
            key_sums, value_sums = _add_queries(
                key_sums, value_sums, key_tile, value_tile, key_rank, key_segment, tile * BK, start, S,
                query, by_position, distance, position, segment, queries, normalizer, d_output, delta, rows, seed,
                B, N, Q, K, R, T, threshold, keep_scale, scale,
                H, HP, BQ, BK, SEGMENTS, WINDOW, False, DROPOUT, True, PRECISION,
            )  # fmt: skip
    if MEMORY:
        first, last = queries_seeing(queries, S, Q, tl.min(key_rank))
        if WINDOW:
            last = tl.minimum(last, tile * BK + BK - 1)
        for start in range(S + (first - S) // BQ * BQ, last, BQ):
            key_sums, value_sums = _add_queries(
                key_sums, value_sums, key_tile, value_tile, key_rank, key_segment, tile * BK, start, Q,
                query, by_position, distance, position, segment, queries, normalizer, d_output, delta, rows, seed,
                B, N, Q, K, R, T, threshold, keep_scale, scale,
                H, HP, BQ, BK, SEGMENTS, WINDOW, NOT_OWN, DROPOUT, False, PRECISION,
            )  # fmt: skip
    tl.store(d_key + at_key, key_sums.to(d_key.dtype.element_ty), mask=mask_key)
    tl.store(d_value + at_key, value_sums.to(d_value.dtype.element_ty), mask=mask_key)


@triton.jit
@no_type_check
def _add_queries(
    key_sums, value_sums, key_tile, value_tile, key_rank, key_segment, first_key, first_query, end,
    query, by_position, distance, position, segment, queries, normalizer, d_output, delta, rows, seed,
    B, N, Q, K, R, T, threshold, keep_scale, scale,
    H: tl.constexpr, HP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    WINDOW: tl.constexpr, NOT_OWN: tl.constexpr, DROPOUT: tl.constexpr, BAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums with BQ more queries. Tiles of scores are transposed: keys by queries."""
    k, h, q = first_key + tl.arange(0, BK), tl.arange(0, HP), first_query + tl.arange(0, BQ)
    rank = tl.load(queries + q, mask=q < end, other=NOWHERE)
    log_total = tl.load(normalizer + q, mask=q < end, other=float("inf"))
    inner = tl.load(delta + q, mask=q < end, other=0.0)
    nothing = tl.zeros([BK, BQ], tl.float32)
    if BAND:
        column = T - q
        shift, at = BQ - 1 - tl.arange(0, BQ)[None, :], tl.arange(0, BK)
        columns = T - first_query - BQ + 1 + first_key + at
        position_tile = tl.trans(block(by_position, q[:, None], h[None, :], end, N * H, H, HP))
        lower_tile = block_or_zeros(distance, columns[:, None], h[None, :], R, N * H, H, HP)
        lower = product(lower_tile, position_tile, nothing, PRECISION).to(key_tile.dtype)
        upper_tile = block_or_zeros(distance, (columns + BK)[:, None], h[None, :], R, N * H, H, HP)
        upper = product(upper_tile, position_tile, nothing, PRECISION).to(key_tile.dtype)
        score = rotated(lower, upper, upper, shift, at[:, None], 0, False).to(tl.float32)
    else:
        column = tl.load(queries + B * Q + q, mask=q < end, other=0)
        score = tl.load(position + (q * R + column)[None, :] + k[:, None]).to(tl.float32)
    if SEGMENTS:
        same = key_segment[:, None] == tl.load(queries + 2 * B * Q + q, mask=q < end, other=0)[None, :]
        same_score = tl.load(segment + q * 2, mask=q < end, other=0.0).to(tl.float32)[None, :]
        other_score = tl.load(segment + q * 2 + 1, mask=q < end, other=0.0).to(tl.float32)[None, :]
        score += tl.where(same, same_score, other_score)
    query_tile = block(query, q[:, None], h[None, :], end, N * H, H, HP)
    score = product(key_tile, tl.trans(query_tile), score, PRECISION)
    seen = visible(rank[None, :], key_rank[:, None], q[None, :], k[:, None], column[None, :], K, T, WINDOW, NOT_OWN)
    weight = tl.exp2(tl.where(seen, in_base_2(score, scale) - log_total[None, :], float("-inf")))
    d_tile = block(d_output, q[:, None], h[None, :], end, N * H, H, HP)
    d_weight = product(value_tile, tl.trans(d_tile), nothing, PRECISION)
    used = weight
    if DROPOUT:
        first_random, second_random = row_keys(rows + q, seed)
        is_kept = kept(first_random[None, :], second_random[None, :], k[:, None], threshold)
        used = tl.where(is_kept, weight * keep_scale, 0.0)
        d_weight = tl.where(is_kept, d_weight * keep_scale, 0.0)
    value_sums = product(used.to(d_tile.dtype), d_tile, value_sums, PRECISION)
    d_score = weight * (d_weight - inner[None, :]) * scale
    return product(d_score.to(query_tile.dtype), query_tile, key_sums, PRECISION), value_sums
