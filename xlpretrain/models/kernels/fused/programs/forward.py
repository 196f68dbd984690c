"""The output of fused relative attention."""

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
    keys_seen,
    product,
    rotated,
    row_keys,
    visible,
)


@triton.jit
@no_type_check
def forward(
    query, key, value, by_position, distance, position, segment, queries, keys, directions, seed, output, normalizer,
    B, N, Q, K, R, T, S, threshold, keep_scale, scale,
    H: tl.constexpr, HP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    WINDOW: tl.constexpr, NOT_OWN: tl.constexpr, DROPOUT: tl.constexpr, DIRECTIONS: tl.constexpr,
    BAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The output of BQ queries of one head of one sample, and their normalizers."""
    begin, end = S, Q
    if BAND:
        begin, end = 0, S
    tiles = tl.cdiv(end - begin, BQ)
    tile = tiles - 1 - tl.program_id(0) % tiles  # in a causal model the last one has most to do
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
    query_segment, same_score, other_score = rank, 0.0, 0.0
    if SEGMENTS:
        query_segment = tl.load(queries + 2 * B * Q + q, mask=q < end, other=0)
        same_score = tl.load(segment + (rows + q) * 2, mask=q < end, other=0.0).to(tl.float32)[:, None]
        other_score = tl.load(segment + (rows + q) * 2 + 1, mask=q < end, other=0.0).to(tl.float32)[:, None]
    if DROPOUT:
        first_key, second_key = row_keys(rows + q, seed)
    highest, total = tl.full([BQ], float("-inf"), tl.float32), tl.zeros([BQ], tl.float32)
    sums = tl.zeros([BQ, HP], tl.float32)
    first, last = keys_seen(keys, K, tl.max(rank))
    if WINDOW:
        first = tl.maximum(first, tile * BQ + 1)
    first = first // BK * BK
    at, nothing = tl.arange(0, BK)[None, :], tl.zeros([BQ, BK], tl.float32)
    AHEAD: tl.constexpr = 2 * BK if BQ > BK else BK
    if BAND:
        distance = distances_of(distance, directions, sample, head, N, R, H, DIRECTIONS)
        first_column = T - tile * BQ - BQ + 1
        lowest = first_column + at  # columns of the lower block for key 0
        position_tile = tl.load(by_position + at_query, mask=mask_query, other=0.0)
        distance_tile = block_or_zeros(distance, lowest + first, h[:, None], R, N * H, H, HP)
        lower = product(position_tile, distance_tile, nothing, PRECISION).to(query_tile.dtype)
        middle = lower
        if BQ > BK:
            distance_tile = block_or_zeros(distance, lowest + first + BK, h[:, None], R, N * H, H, HP)
            middle = product(position_tile, distance_tile, nothing, PRECISION).to(query_tile.dtype)
    else:
        position += ((head * B + sample).to(tl.int64) * (Q - S) - S) * R
    for start in range(first, last, BK):
        k = start + tl.arange(0, BK)
        key_rank = tl.load(keys + k, mask=k < K, other=NEVER)
        key_tile = block(key + at_key, k[None, :], h[:, None], K, N * H, H, HP)
        column = tl.load(queries + B * Q + q, mask=q < end, other=0)  # here, so that less is kept in registers
        if BAND:
            shift = (column - first_column)[:, None]
            distance_tile = block_or_zeros(distance, lowest + start + AHEAD, h[:, None], R, N * H, H, HP)
            upper = product(position_tile, distance_tile, nothing, PRECISION).to(query_tile.dtype)
            score = rotated(lower, middle if BQ > BK else upper, upper, shift, at, 1, BQ > BK).to(tl.float32)
            lower, middle = middle if BQ > BK else upper, upper
        else:
            # Nothing bounds the reading: past the end of a row are numbers of the next one, and past the last row there
            # is room (see `operators.py`). All of those are of keys that the query does not see.
            score = tl.load(position + (q * R + column)[:, None] + k[None, :]).to(tl.float32)
        if SEGMENTS:
            same = query_segment[:, None] == tl.load(keys + B * K + k, mask=k < K, other=0)[None, :]
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
        score = tl.where(seen, in_base_2(score, scale), float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - finite[:, None])
        factor = tl.exp2(highest - finite)
        total = total * factor + tl.sum(weight, 1)
        if DROPOUT:
            weight = tl.where(kept(first_key[:, None], second_key[:, None], k[None, :], threshold), weight, 0.0)
        value_tile = block(value + at_key, k[:, None], h[None, :], K, N * H, H, HP)
        sums = product(weight.to(value_tile.dtype), value_tile, sums * factor[:, None], PRECISION)
        highest = higher
    sees = total > 0
    sums = sums * tl.where(sees, keep_scale / tl.where(sees, total, 1.0), 0.0)[:, None]
    tl.store(output + at_query, sums.to(output.dtype.element_ty), mask=mask_query)
    log_total = tl.where(sees, highest + tl.log2(tl.where(sees, total, 1.0)), float("inf"))
    tl.store(normalizer + rows + q, log_total, mask=q < end)
