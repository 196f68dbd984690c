"""Triton programs of a layer around its attention: biases of queries; residual and norm, bias and activation, each
with dropout.

Imported only where Triton is installed. Tensors are contiguous matrices of ROWS x WIDTH: positions, and the width of
the hidden states or of the feed-forward's inner layer. Numbers are in fp32 between a load and a store. Dropout is that
of the attention's programs: a function of a seed, the row and the column, so the backward pass needs no mask.

Gradients of weights and biases are sums over rows. Each of P programs sums its own rows into a row of `partials`
(P x COLUMNS, fp32), which one matrix holds for a whole layer, and `column_sums` of the attention's programs adds those
in a fixed order: nothing is added atomically, and results are the same in every bit.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from xlpretrain.models.kernels.fused.programs.parts import kept, row_keys


@triton.jit
@no_type_check
def _dropped(numbers, row, column, seed, threshold, keep_scale):
    first, second = row_keys(row, seed)
    return tl.where(kept(first[:, None], second[:, None], column[None, :], threshold), numbers * keep_scale, 0.0)


@triton.jit
@no_type_check
def add_norm(
    added, residual, weight, bias, seed, output, total, center, factor,
    ROWS, WIDTH, threshold, keep_scale, epsilon,
    BR: tl.constexpr, BC: tl.constexpr, CENTERED: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """total = residual + dropout(added); output = (total - center) factor weight + bias, of BR rows.

    Center and factor (fp32) are a row's mean and 1 / its deviation; without CENTERED, 0 and 1 / its root mean square.
    """
    row, column = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BC)
    inside = (row < ROWS)[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    numbers = tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        numbers = _dropped(numbers, row, column, seed, threshold, keep_scale)
    rounded = (numbers + tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
    tl.store(total + at, rounded, mask=inside)
    numbers = rounded.to(tl.float32)
    if CENTERED:
        mean = tl.sum(numbers, 1) / WIDTH
        tl.store(center + row, mean, mask=row < ROWS)
        numbers = tl.where(inside, numbers - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(numbers * numbers, 1) / WIDTH + epsilon)
    tl.store(factor + row, scale, mask=row < ROWS)
    numbers *= scale[:, None] * tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    if BIASED:
        numbers += tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    tl.store(output + at, numbers.to(output.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def add_norm_backward(
    d_output, total, center, factor, weight, seed, d_residual, d_added, partials,
    ROWS, WIDTH, COLUMNS, threshold, keep_scale,
    BR: tl.constexpr, BC: tl.constexpr, CENTERED: tl.constexpr, BIASED: tl.constexpr, SUMMED: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """Gradients of residual and added, and of weight, bias and (with SUMMED) a bias in added, in parts.

    The parts of a program are one after the other in its row of `partials`.
    """
    column = tl.arange(0, BC)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    for_weight, for_bias = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    for_added = tl.zeros([BR, BC], tl.float32)
    for start in range(tl.program_id(0) * BR, ROWS, tl.num_programs(0) * BR):
        row = start + tl.arange(0, BR)
        inside = (row < ROWS)[:, None] & (column < WIDTH)[None, :]
        at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        normal = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        if CENTERED:
            normal = tl.where(inside, normal - tl.load(center + row, mask=row < ROWS, other=0.0)[:, None], 0.0)
        of_row = tl.load(factor + row, mask=row < ROWS, other=0.0)[:, None]
        normal *= of_row
        gradient = tl.load(d_output + at, mask=inside, other=0.0).to(tl.float32)
        for_weight += gradient * normal
        if BIASED:
            for_bias += gradient
        gradient *= scale
        gradient -= normal * (tl.sum(gradient * normal, 1) / WIDTH)[:, None]
        if CENTERED:  # the sum of `normal` is 0, so the order of these two does not matter
            gradient -= (tl.sum(gradient, 1) / WIDTH)[:, None]
        gradient *= of_row
        tl.store(d_residual + at, gradient.to(d_residual.dtype.element_ty), mask=inside)
        if DROPOUT:
            gradient = _dropped(gradient, row, column, seed, threshold, keep_scale)
        tl.store(d_added + at, gradient.to(d_added.dtype.element_ty), mask=inside)
        if SUMMED:
            for_added += tl.where(inside, gradient, 0.0)
    partials += tl.program_id(0).to(tl.int64) * COLUMNS + column
    tl.store(partials, tl.sum(for_weight, 0), mask=column < WIDTH)
    if BIASED:
        partials += WIDTH
        tl.store(partials, tl.sum(for_bias, 0), mask=column < WIDTH)
    if SUMMED:
        partials += WIDTH
        tl.store(partials, tl.sum(for_added, 0), mask=column < WIDTH)


@triton.jit
@no_type_check
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@triton.jit
@no_type_check
def _active(x, ACTIVATION: tl.constexpr):
    """The activation, and its derivative."""
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0), tl.where(x > 0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return x * share, share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "gelu_tanh":
        bent = _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        slope = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        return 0.5 * x * (1.0 + bent), 0.5 * (1.0 + bent) + 0.5 * x * (1.0 - bent * bent) * slope
    else:
        tl.static_assert(ACTIVATION == "silu")
        share = 1.0 / (1.0 + tl.exp(-x))
        return x * share, share * (1.0 + x * (1.0 - share))


@triton.jit
@no_type_check
def activate(
    inner, bias, seed, output, ROWS, WIDTH, threshold, keep_scale,
    BR: tl.constexpr, BC: tl.constexpr, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """dropout(activation(inner + bias)), BR rows of BC columns."""
    row, column = tl.program_id(0) * BR + tl.arange(0, BR), tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (row < ROWS)[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    numbers = tl.load(inner + at, mask=inside, other=0.0).to(tl.float32)
    numbers += tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    numbers, _ = _active(numbers, ACTIVATION)
    if DROPOUT:
        numbers = _dropped(numbers, row, column, seed, threshold, keep_scale)
    tl.store(output + at, numbers.to(output.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def activate_backward(
    d_output, inner, bias, seed, d_inner, output, partials, ROWS, WIDTH, COLUMNS, threshold, keep_scale,
    BR: tl.constexpr, BC: tl.constexpr, ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """The gradient of inner, the output once more, and the gradient of the bias in parts."""
    column = tl.program_id(1) * BC + tl.arange(0, BC)
    shift = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    for_bias = tl.zeros([BR, BC], tl.float32)
    for start in range(tl.program_id(0) * BR, ROWS, tl.num_programs(0) * BR):
        row = start + tl.arange(0, BR)
        inside = (row < ROWS)[:, None] & (column < WIDTH)[None, :]
        at = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        numbers, slope = _active(tl.load(inner + at, mask=inside, other=0.0).to(tl.float32) + shift, ACTIVATION)
        gradient = tl.load(d_output + at, mask=inside, other=0.0).to(tl.float32) * slope
        if DROPOUT:
            numbers = _dropped(numbers, row, column, seed, threshold, keep_scale)
            gradient = _dropped(gradient, row, column, seed, threshold, keep_scale)
        tl.store(output + at, numbers.to(output.dtype.element_ty), mask=inside)
        tl.store(d_inner + at, gradient.to(d_inner.dtype.element_ty), mask=inside)
        for_bias += gradient
    at = tl.program_id(0).to(tl.int64) * COLUMNS + column
    tl.store(partials + at, tl.sum(for_bias, 0), mask=column < WIDTH)


@triton.jit
@no_type_check
def bias_queries(
    query, content_bias, position_bias, segment_bias, embedding, by_content, by_position, segment, ROWS, N,
    H: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """The queries of one head (of N, H wide) with the biases of scores by content and by position.

    With SEGMENTS also their scores by segment (N x ROWS x 2): products with the two vectors of `embedding`.
    """
    row, column, head = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BC), tl.program_id(1)
    inside, of_head = (row < ROWS)[:, None] & (column < H)[None, :], head * H + column
    at = row.to(tl.int64)[:, None] * (N * H) + of_head[None, :]
    numbers = tl.load(query + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(content_bias + of_head, mask=column < H, other=0.0).to(tl.float32)[None, :]
    tl.store(by_content + at, (numbers + bias).to(by_content.dtype.element_ty), mask=inside)
    bias = tl.load(position_bias + of_head, mask=column < H, other=0.0).to(tl.float32)[None, :]
    tl.store(by_position + at, (numbers + bias).to(by_position.dtype.element_ty), mask=inside)
    if SEGMENTS:
        numbers += tl.load(segment_bias + of_head, mask=column < H, other=0.0).to(tl.float32)[None, :]
        for other in tl.static_range(2):
            vector = tl.load(embedding + other * N * H + of_head, mask=column < H, other=0.0).to(tl.float32)
            scores = tl.sum(numbers * vector[None, :], 1).to(segment.dtype.element_ty)
            tl.store(segment + (head.to(tl.int64) * ROWS + row) * 2 + other, scores, mask=row < ROWS)


@triton.jit
@no_type_check
def bias_queries_backward(
    d_content, d_position, d_segment, by_content, content_bias, segment_bias, embedding, d_query, partials,
    ROWS, N, COLUMNS,
    H: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries, and in parts those of the biases, then of the segments' bias and vectors."""
    column, head = tl.arange(0, BC), tl.program_id(1)
    of_head = head * H + column
    shift = tl.zeros([BC], tl.float32)
    same_vector, other_vector = shift, shift
    if SEGMENTS:  # the queries themselves are not kept
        shift += tl.load(segment_bias + of_head, mask=column < H, other=0.0).to(tl.float32)
        shift -= tl.load(content_bias + of_head, mask=column < H, other=0.0).to(tl.float32)
        same_vector = tl.load(embedding + of_head, mask=column < H, other=0.0).to(tl.float32)
        other_vector = tl.load(embedding + N * H + of_head, mask=column < H, other=0.0).to(tl.float32)
    for_content, for_position = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    for_segment, for_same = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    for_other = tl.zeros([BR, BC], tl.float32)
    for start in range(tl.program_id(0) * BR, ROWS, tl.num_programs(0) * BR):
        row = start + tl.arange(0, BR)
        inside = (row < ROWS)[:, None] & (column < H)[None, :]
        at = row.to(tl.int64)[:, None] * (N * H) + of_head[None, :]
        gradient = tl.load(d_content + at, mask=inside, other=0.0).to(tl.float32)
        for_content += gradient
        more = tl.load(d_position + at, mask=inside, other=0.0).to(tl.float32)
        for_position += more
        gradient += more
        if SEGMENTS:
            place = d_segment + (head.to(tl.int64) * ROWS + row) * 2
            same = tl.load(place, mask=row < ROWS, other=0.0).to(tl.float32)[:, None]
            other = tl.load(place + 1, mask=row < ROWS, other=0.0).to(tl.float32)[:, None]
            more = same * same_vector[None, :] + other * other_vector[None, :]
            for_segment += more
            gradient += more
            numbers = tl.load(by_content + at, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
            for_same += same * numbers
            for_other += other * numbers
        tl.store(d_query + at, gradient.to(d_query.dtype.element_ty), mask=inside)
    partials += tl.program_id(0).to(tl.int64) * COLUMNS + of_head
    tl.store(partials, tl.sum(for_content, 0), mask=column < H)
    tl.store(partials + N * H, tl.sum(for_position, 0), mask=column < H)
    if SEGMENTS:
        tl.store(partials + 2 * N * H, tl.sum(for_segment, 0), mask=column < H)
        tl.store(partials + 3 * N * H, tl.sum(for_same, 0), mask=column < H)
        tl.store(partials + 4 * N * H, tl.sum(for_other, 0), mask=column < H)
