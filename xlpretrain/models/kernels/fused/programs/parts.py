"""Parts of all programs: products, dropout, what is seen, what can be skipped, and scores by position.

Module: `programs/__init__.py` has the shapes.
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
def product(left, right, sums, PRECISION: tl.constexpr):
    """A matrix product, added to `sums`. Triton's interpreter cannot multiply bf16, so it widens (the same product)."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), sums, input_precision="ieee")
    return tl.dot(left, right, sums, input_precision=PRECISION)


@triton.jit
@no_type_check
def mixed(number, inner):
    """A bijection of 32-bit integers that looks random (Wellons' lowbias32), with another integer stirred in."""
    number ^= number >> 16
    number *= 0x7FEB352D
    number ^= (number >> 15) ^ inner
    number *= 0x846CA68B
    return number ^ (number >> 16)


@triton.jit
@no_type_check
def row_keys(row, seed):
    """Two random numbers for each row of scores."""
    low, high = tl.load(seed).to(tl.uint32), tl.load(seed + 1).to(tl.uint32)
    first = mixed(row.to(tl.uint32) ^ low, high)
    return first, mixed(first ^ high, low)


@triton.jit
@no_type_check
def kept(first, second, key, threshold):
    """True where a weight is kept: a function of the seed, the row and the key, not of the tile."""
    number = mixed(key.to(tl.uint32) * 0x9E3779B9 ^ first, second)
    return (number >> 1).to(tl.int32) >= threshold


@triton.jit
@no_type_check
def in_base_2(score, scale):
    """A scaled score whose exp2 is the exponential of the score."""
    return score * (scale * LOG2E)


@triton.jit
@no_type_check
def inside(at, count, h, H: tl.constexpr, HP: tl.constexpr):
    """Mask of loads and stores: rows that exist, and columns within the head if that is narrower than the tile."""
    mask = at < count
    if H != HP:
        mask = mask & (h < H)
    return mask


@triton.jit
@no_type_check
def visible(query_rank, key_rank, query, key, column, K, T, WINDOW: tl.constexpr, NOT_OWN: tl.constexpr):
    """Mask of the keys that queries see, of broadcast vectors."""
    seen = key_rank <= query_rank
    if WINDOW:
        seen = seen & (key + column > T)
    if NOT_OWN:
        seen = seen & ((query < T) | (key + column != K))
    return seen


@triton.jit
@no_type_check
def keys_seen(ranks, count, highest):
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
def queries_seeing(ranks, begin, end, lowest):
    """The first and the last + 1 of the queries from `begin` to `end` whose rank is at least `lowest`."""
    first, last = end, begin
    for start in range(begin, end, SCANNED):
        at = start + tl.arange(0, SCANNED)
        seeing = tl.load(ranks + at, mask=at < end, other=NOWHERE) >= lowest
        first = tl.minimum(first, tl.min(tl.where(seeing, at, end)))
        last = tl.maximum(last, tl.max(tl.where(seeing, at + 1, begin)))
    return first, last


@triton.jit
@no_type_check
def distances_of(distance, directions, sample, head, N, R, H: tl.constexpr, DIRECTIONS: tl.constexpr):
    """A pointer to the vectors of one head for a sample's direction: that of column r is r N H further."""
    distance += head * H
    if DIRECTIONS:
        distance += tl.load(directions + sample) * (R * N * H)
    return distance


@triton.jit
@no_type_check
def block(vectors, at, h, count, stride, H: tl.constexpr, HP: tl.constexpr):
    """The vectors at the places `at` of a row-major matrix of `count` rows; zeros where there are none.

    Of `at` and `h` one is a column and the other a row: that decides if the tile is transposed.
    """
    return tl.load(vectors + at * stride + h, mask=inside(at, count, h, H, HP), other=0.0)


@triton.jit
@no_type_check
def block_or_zeros(vectors, at, h, count, stride, H: tl.constexpr, HP: tl.constexpr):
    """The same where places may be negative."""
    return tl.load(vectors + at * stride + h, mask=(at >= 0) & inside(at, count, h, H, HP), other=0.0)


@triton.jit
@no_type_check
def rotated(first, second, third, shift, at, AXIS: tl.constexpr, TWO: tl.constexpr):
    """Elements `shift` to `shift` + BK - 1 of successive blocks of BK along an axis, for each row (or column) its own.

    Of the first two blocks if shifts are less than BK; with TWO, shifts are less than 2 BK, and there is a third.
    """
    size: tl.constexpr = first.shape[AXIS]
    if TWO:
        first, second = tl.where(shift >= size, second, first), tl.where(shift >= size, third, second)
    return tl.gather(tl.where(at >= (shift & (size - 1)), first, second), (at + shift) & (size - 1), AXIS)


@triton.jit
@no_type_check
def rotated_back(tile, shift, at, AXIS: tl.constexpr):
    """The places where `rotated` took elements from."""
    size: tl.constexpr = tile.shape[AXIS]
    return tl.gather(tile, (at - shift) & (size - 1), AXIS)


@triton.jit
@no_type_check
def completed(now, earlier, earliest, shift, at, TWO: tl.constexpr):
    """The oldest block, complete by now, from the last three tiles rotated back."""
    size: tl.constexpr = now.shape[1]
    if TWO:
        now, earlier = tl.where(shift >= size, earlier, now), tl.where(shift >= size, earliest, earlier)
    return tl.where(at >= (shift & (size - 1)), now, earlier)
