"""Gradients of the queries of fused relative attention."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from xlpretrain.models.kernels.fused.programs.parts import (
    NEVER,
    NOWHERE,
    block,
    block_or_zeros,
    completed,
    distances_of,
    in_base_2,
    inside,
    kept,
    keys_seen,
    product,
    rotated,
    rotated_back,
    row_keys,
    visible,
)


@triton.jit
@no_type_check
def backward_queries(
    query, key, value, by_position, distance, position, segment, queries, keys, directions, seed,
    output, normalizer, d_output, d_query, d_by_position, d_position, d_segment, delta,
    B, N, Q, K, R, T, S, threshold, keep_scale, scale,
    H: tl.constexpr, HP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    WINDOW: tl.constexpr, NOT_OWN: tl.constexpr, DROPOUT: tl.constexpr, DIRECTIONS: tl.constexpr,
    BAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of BQ queries of one head of one sample, by content, by position and by segment.

    Without BAND the gradient by position is that of the scores in memory. Also writes `delta`, the inner product of the
    output and its gradient, which the other backward programs need.
    """
    begin, end = S, Q
    if BAND:
        begin, end = 0, S
    tiles = tl.cdiv(end - begin, BQ)
    tile = tiles - 1 - tl.program_id(0) % tiles
    sample, head = tl.program_id(0) // tiles // N, tl.program_id(0) // tiles % N
    q, h = begin + tile * BQ + tl.arange(0, BQ), tl.arange(0, HP)
    rows = (head * B + sample).to(tl.int64) * Q
    queries += sample * Q
    keys += sample * K
    rank = tl.load(queries + q, mask=q < end, other=NOWHERE)
    mask_query = inside(q[:, None], end, h[None, :], H, HP)
    at_query = sample.to(tl.int64) * Q * N * H + head * H + q[:, None] * (N * H) + h[None, :]
    at_key = sample.to(tl.int64) * K * N * H + head * H
    query_tile = tl.load(query + at_query, mask=mask_query, other=0.0)
    d_tile = tl.load(d_output + at_query, mask=mask_query, other=0.0)
    inner = tl.sum(tl.load(output + at_query, mask=mask_query, other=0.0).to(tl.float32) * d_tile.to(tl.float32), 1)
    tl.store(delta + rows + q, inner, mask=q < end)
    log_total = tl.load(normalizer + rows + q, mask=q < end, other=float("inf"))
    query_segment = rank
    d_same, d_other = tl.zeros([BQ], tl.float32), tl.zeros([BQ], tl.float32)
    if SEGMENTS:
        query_segment = tl.load(queries + 2 * B * Q + q, mask=q < end, other=0)
    if DROPOUT:
        first_key, second_key = row_keys(rows + q, seed)
    sums, position_sums = tl.zeros([BQ, HP], tl.float32), tl.zeros([BQ, HP], tl.float32)
    first, last = keys_seen(keys, K, tl.max(rank))
    if WINDOW:
        first = tl.maximum(first, tile * BQ + 1)
    first = first // BK * BK
    last = tl.maximum(first, first + tl.cdiv(last - first, BK) * BK)
    at, nothing = tl.arange(0, BK)[None, :], tl.zeros([BQ, BK], tl.float32)
    AHEAD: tl.constexpr = 2 * BK if BQ > BK else BK
    if BAND:
        distance = distances_of(distance, directions, sample, head, N, R, H, DIRECTIONS)
        first_column = T - tile * BQ - BQ + 1
        lowest = first_column + tl.arange(0, BK)  # columns of the lower block for key 0
        position_tile = tl.load(by_position + at_query, mask=mask_query, other=0.0)
        upper_tile = block_or_zeros(distance, (lowest + first)[None, :], h[:, None], R, N * H, H, HP)
        lower = product(position_tile, upper_tile, nothing, PRECISION).to(query_tile.dtype)
        middle = lower
        if BQ > BK:
            upper_tile = block_or_zeros(distance, (lowest + first + BK)[None, :], h[:, None], R, N * H, H, HP)
            middle = product(position_tile, upper_tile, nothing, PRECISION).to(query_tile.dtype)
        earlier = nothing.to(query_tile.dtype)  # the gradient of the last tile's scores by position, rotated back
        earliest = earlier
    else:
        of_head = ((head * B + sample).to(tl.int64) * (Q - S) - S) * R
        position += of_head
        d_position += of_head
        column = tl.load(queries + B * Q + q, mask=q < end, other=0)
        columns_end = tl.where(q < end, R - column, -R)  # 1 + the last key, real or not, that has a column
        _zero_columns(d_position, q * R + column, column, columns_end, -tl.max(column), first, BK)
        _zero_columns(d_position, q * R + column, column, columns_end, last, tl.max(columns_end), BK)
    for start in range(first, last, BK):
        k = start + tl.arange(0, BK)
        key_rank = tl.load(keys + k, mask=k < K, other=NEVER)
        key_tile = block(key + at_key, k[None, :], h[:, None], K, N * H, H, HP)
        column = tl.load(queries + B * Q + q, mask=q < end, other=0)  # here, so that less is kept in registers
        if BAND:
            shift = (column - first_column)[:, None]
            upper_tile = block_or_zeros(distance, (lowest + start + AHEAD)[None, :], h[:, None], R, N * H, H, HP)
            upper = product(position_tile, upper_tile, nothing, PRECISION).to(query_tile.dtype)
            score = rotated(lower, middle if BQ > BK else upper, upper, shift, at, 1, BQ > BK).to(tl.float32)
            lower, middle = middle if BQ > BK else upper, upper
        else:
            score = tl.load(position + (q * R + column)[:, None] + k[None, :]).to(tl.float32)
        same = rank[:, None] == key_rank[None, :]
        if SEGMENTS:
            same = query_segment[:, None] == tl.load(keys + B * K + k, mask=k < K, other=0)[None, :]
            same_score = tl.load(segment + (rows + q) * 2, mask=q < end, other=0.0).to(tl.float32)[:, None]
            other_score = tl.load(segment + (rows + q) * 2 + 1, mask=q < end, other=0.0).to(tl.float32)[:, None]
            score += tl.where(same, same_score, other_score)
        score = product(query_tile, key_tile, score, PRECISION)
        seen = visible(
            rank[:, None],
            key_rank[None, :],
            q[:, None],
            k[None, :],
            column[:, None],
            K,
            T,
            WINDOW,
            NOT_OWN and not BAND,
        )
        weight = tl.exp2(tl.where(seen, in_base_2(score, scale) - log_total[:, None], float("-inf")))
        value_tile = block(value + at_key, k[None, :], h[:, None], K, N * H, H, HP)
        d_weight = product(d_tile, value_tile, nothing, PRECISION)
        if DROPOUT:
            is_kept = kept(first_key[:, None], second_key[:, None], k[None, :], threshold)
            d_weight = tl.where(is_kept, d_weight * keep_scale, 0.0)
        d_score = weight * (d_weight - inner[:, None]) * scale
        if SEGMENTS:
            d_same += tl.sum(tl.where(same, d_score, 0.0), 1)
            d_other += tl.sum(tl.where(same, 0.0, d_score), 1)
        d_rounded = d_score.to(key_tile.dtype)
        sums = product(d_rounded, tl.trans(key_tile), sums, PRECISION)
        if BAND:
            now = rotated_back(d_rounded, shift, at, 1)
            lower_tile = block_or_zeros(distance, (lowest + start)[:, None], h[None, :], R, N * H, H, HP)
            d_block = completed(now, earlier, earliest, shift, at, BQ > BK)
            position_sums = product(d_block, lower_tile, position_sums, PRECISION)
            earliest, earlier = earlier, now
        else:
            mask = k[None, :] < tl.where(q < end, R - column, -R)[:, None]
            tl.store(d_position + (q * R + column)[:, None] + k[None, :], d_rounded, mask=mask)
    if BAND:
        shift, none = BQ - 1 - tl.arange(0, BQ)[:, None], nothing.to(query_tile.dtype)
        lower_tile = block_or_zeros(distance, (lowest + last)[:, None], h[None, :], R, N * H, H, HP)
        d_block = completed(none, earlier, earliest, shift, at, BQ > BK)
        position_sums = product(d_block, lower_tile, position_sums, PRECISION)
        if BQ > BK:
            lower_tile = block_or_zeros(distance, (lowest + last + BK)[:, None], h[None, :], R, N * H, H, HP)
            d_block = completed(none, none, earlier, shift, at, True)
            position_sums = product(d_block, lower_tile, position_sums, PRECISION)
        tl.store(d_by_position + at_query, position_sums.to(d_by_position.dtype.element_ty), mask=mask_query)
    tl.store(d_query + at_query, sums.to(d_query.dtype.element_ty), mask=mask_query)
    if SEGMENTS:
        tl.store(d_segment + (rows + q) * 2, d_same.to(d_segment.dtype.element_ty), mask=q < end)
        tl.store(d_segment + (rows + q) * 2 + 1, d_other.to(d_segment.dtype.element_ty), mask=q < end)


@triton.jit
@no_type_check
def _zero_columns(gradient, skewed, column, end, first, last, BK: tl.constexpr):
    """Zero the gradient of the position scores of keys from `first` to `last`, which may be keys that do not exist."""
    for start in range(first, last, BK):
        k = start + tl.arange(0, BK)[None, :]
        mask = (k >= -column[:, None]) & (k < end[:, None]) & (k < last)
        zero = tl.zeros(k.shape, tl.float32).to(gradient.dtype.element_ty)
        tl.store(gradient + skewed[:, None] + k, zero, mask=mask)
