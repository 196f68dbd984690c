"""Gradients of the distances' vectors of fused relative attention, where scores by position are not in memory."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from xlpretrain.models.kernels.fused.programs.parts import (
    NEVER,
    NOWHERE,
    block,
    block_or_zeros,
    in_base_2,
    inside,
    kept,
    product,
    rotated_back,
    row_keys,
    visible,
)


@triton.jit
@no_type_check
def backward_distances(
    query, key, value, by_position, distance, position, segment, queries, keys, directions, seed,
    normalizer, d_output, delta, d_distance,
    B, N, Q, K, R, T, S, threshold, keep_scale, scale, SAMPLES, SETS,
    H: tl.constexpr, HP: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, SEGMENTS: tl.constexpr,
    WINDOW: tl.constexpr, NOT_OWN: tl.constexpr, DROPOUT: tl.constexpr, DIRECTIONS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of BK distances of one head and direction, over the queries before S of SAMPLES samples.

    Written to "groups of samples, G R N H" in fp32, which are to be added up. Query i of a tile and distance d belong
    to the key `i + d` after the tile's first key. Keys are two blocks of BK, of which a row uses BK in sequence; row i
    has the keys of the upper block in the first i places, and of the lower block in the others: so that for each
    place there is one key, and scores by distance are rotated to it and back.
    """
    tiles = tl.cdiv(R, BK)
    tile, head = tl.program_id(0) % tiles, tl.program_id(0) // tiles % N
    direction, group = tl.program_id(0) // tiles // N % SETS, tl.program_id(0) // tiles // N // SETS
    # Tiles of scores are transposed: distances by queries.
    row, at, h = tl.arange(0, BQ), tl.arange(0, BK), tl.arange(0, HP)
    column = tile * BK + at
    of_head = direction * R * N * H + head * H
    distance_tile = block(distance + of_head, column[:, None], h[None, :], R, N * H, H, HP)
    sums, nothing = tl.zeros([BK, HP], tl.float32), tl.zeros([BK, BQ], tl.float32)
    is_upper = at[:, None] < row[None, :]
    # Key = column - T + query: queries of which some key is in the range.
    first = tl.maximum(0, T - tile * BK - BK + 1) // BQ * BQ
    last = tl.minimum(S, K + T - tile * BK)
    if WINDOW:
        last = tl.where(tile * BK + BK - 1 > T, last, 0)
    for sample in range(group * SAMPLES, tl.minimum(B, group * SAMPLES + SAMPLES)):
        rows = (head * B + sample).to(tl.int64) * Q
        of_query = tl.cast(sample, tl.int64) * Q * N * H + head * H
        of_key = tl.cast(sample, tl.int64) * K * N * H + head * H
        end = last
        if DIRECTIONS:
            end = tl.where(tl.load(directions + sample) == direction, last, 0)
        for start in range(first, end, BQ):
            q, lower = start + row, tile * BK - T + start + at
            upper = lower + BK
            k = tl.where(is_upper, upper[:, None], lower[:, None])
            query_tile = tl.trans(block(query + of_query, q[:, None], h[None, :], S, N * H, H, HP))
            lower_tile = block_or_zeros(key + of_key, lower[:, None], h[None, :], K, N * H, H, HP)
            score = product(lower_tile, query_tile, nothing, PRECISION)
            upper_tile = block_or_zeros(key + of_key, upper[:, None], h[None, :], K, N * H, H, HP)
            score = tl.where(is_upper, product(upper_tile, query_tile, nothing, PRECISION), score)
            position_tile = block(by_position + of_query, q[:, None], h[None, :], S, N * H, H, HP)
            by_distance = product(distance_tile, tl.trans(position_tile), nothing, PRECISION).to(query_tile.dtype)
            score += rotated_back(by_distance, row[None, :], at[:, None], 0).to(tl.float32)
            if SEGMENTS:
                of_upper = tl.load(keys + (B + sample) * K + upper, mask=(upper >= 0) & (upper < K), other=0)
                of_lower = tl.load(keys + (B + sample) * K + lower, mask=(lower >= 0) & (lower < K), other=0)
                query_segment = tl.load(queries + (2 * B + sample) * Q + q, mask=q < S, other=0)
                same = query_segment[None, :] == tl.where(is_upper, of_upper[:, None], of_lower[:, None])
                same_score = tl.load(segment + (rows + q) * 2, mask=q < S, other=0.0).to(tl.float32)[None, :]
                other_score = tl.load(segment + (rows + q) * 2 + 1, mask=q < S, other=0.0).to(tl.float32)[None, :]
                score += tl.where(same, same_score, other_score)
            rank = tl.load(queries + sample * Q + q, mask=q < S, other=NOWHERE)
            upper_rank = tl.load(keys + sample * K + upper, mask=(upper >= 0) & (upper < K), other=NEVER)
            lower_rank = tl.load(keys + sample * K + lower, mask=(lower >= 0) & (lower < K), other=NEVER)
            key_rank = tl.where(is_upper, upper_rank[:, None], lower_rank[:, None])
            seen = visible(rank[None, :], key_rank, q[None, :], k, (T - q)[None, :], K, T, WINDOW, False)
            log_total = tl.load(normalizer + rows + q, mask=q < S, other=float("inf"))
            weight = tl.exp2(tl.where(seen, in_base_2(score, scale) - log_total[None, :], float("-inf")))
            d_tile = tl.trans(block(d_output + of_query, q[:, None], h[None, :], S, N * H, H, HP))
            lower_tile = block_or_zeros(value + of_key, lower[:, None], h[None, :], K, N * H, H, HP)
            d_weight = product(lower_tile, d_tile, nothing, PRECISION)
            upper_tile = block_or_zeros(value + of_key, upper[:, None], h[None, :], K, N * H, H, HP)
            d_weight = tl.where(is_upper, product(upper_tile, d_tile, nothing, PRECISION), d_weight)
            if DROPOUT:
                first_random, second_random = row_keys(rows + q, seed)
                is_kept = kept(first_random[None, :], second_random[None, :], k, threshold)
                d_weight = tl.where(is_kept, d_weight * keep_scale, 0.0)
            inner = tl.load(delta + rows + q, mask=q < S, other=0.0)
            d_score = (weight * (d_weight - inner[None, :]) * scale).to(query_tile.dtype)
            d_by_distance = tl.gather(d_score, (at[:, None] + row[None, :]) & (BK - 1), 0)
            sums = product(d_by_distance, position_tile, sums, PRECISION)
    at_distance = (group.to(tl.int64) * SETS) * R * N * H + of_head + column[:, None] * (N * H) + h[None, :]
    tl.store(d_distance + at_distance, sums, mask=inside(column[:, None], R, h[None, :], H, HP))
