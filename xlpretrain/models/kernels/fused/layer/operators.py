"""The programs of `programs.py` as operators of torch, with shapes for the meta device.

Shapes: [.., D] hidden states, [.., F] the inner layer of a feed-forward, P x C partial sums (see `partial_sums`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlpretrain.extras import optional
from xlpretrain.models.kernels.fused.launch import sum_partials

_DROPPED = 2**31
"""Number of levels of a dropout rate."""
_SUMMED_BY = 256
"""Programs that each add the rows of some positions: two for each multiprocessor of an H100."""
WIDEST = 8192
"""A norm's whole row is in the registers of one program."""


class Tile(NamedTuple):
    """The settings of one program."""

    rows: int
    columns: int
    warps: int = 4


def norm_tile(width: int) -> Tile:
    """Whole rows: at most 16 numbers a thread, of one row that is wider 32."""
    columns = max(16, 1 << (width - 1).bit_length())
    return Tile(max(1, 2048 // columns), columns, 4 if columns <= 2048 else 8)


def head_tile(width: int) -> Tile:
    """The width of one head, and 16 numbers a thread."""
    columns = max(16, 1 << (width - 1).bit_length())
    return Tile(max(1, 2048 // columns), columns)


ACTIVATION_TILE = Tile(16, 128)


def partial_sums(rows: int, columns: int, like: Tensor) -> Tensor:
    """Room for the partial sums of all weights and biases of a layer: C columns, one row for each program."""
    programs = _SUMMED_BY if like.device.type != "cpu" else 2  # the interpreter takes milliseconds for each
    return like.new_empty(min(programs, rows), columns, dtype=torch.float32)


def _launch(
    program: str,
    grid: tuple[int, ...],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int | float, ...],
    tile: Tile,
    **more: Any,
) -> None:
    with optional("triton", "engine.attention: fused"):
        from xlpretrain.models.kernels.fused.layer import programs

    settings: Mapping[str, Any] = {"BR": tile.rows, "BC": tile.columns, "num_warps": tile.warps}
    getattr(programs, program)[grid](*tensors, *numbers, **settings, **more)


def _levels(rate: float, seed: Tensor | None) -> tuple[int, float, bool]:
    """The threshold and the scale of dropout, and whether anything is dropped."""
    dropped = round(rate * _DROPPED)
    return dropped, _DROPPED / (_DROPPED - dropped), seed is not None and dropped > 0


def _rows(tensor: Tensor) -> int:
    return tensor.shape[:-1].numel()


@torch.library.custom_op(
    "xlpretrain::add_norm",
    mutates_args=(),
    schema="(Tensor added, Tensor residual, Tensor weight, Tensor? bias, Tensor? seed, float rate, float epsilon,"
    " bool centered) -> (Tensor, Tensor, Tensor, Tensor)",
)
def add_norm(
    added: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    rate: float,
    epsilon: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norm of residual + dropout(added), that sum, and each row's center (unless `centered`: none) and factor."""
    added, residual = added.contiguous(), residual.contiguous()
    results, rows, tile = _like_norm(added, centered), _rows(added), norm_tile(added.shape[-1])
    threshold, keep_scale, dropout = _levels(rate, seed)
    _launch(
        "add_norm",
        (-(-rows // tile.rows),),
        (added, residual, weight, weight if bias is None else bias, added if seed is None else seed, *results),
        (rows, added.shape[-1], threshold, keep_scale, epsilon),
        tile,
        CENTERED=centered,
        BIASED=bias is not None,
        DROPOUT=dropout,
    )
    return results


def _like_norm(added: Tensor, centered: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = _rows(added)
    center = added.new_empty(rows if centered else 0, dtype=torch.float32)
    return (
        added.new_empty(added.shape),
        added.new_empty(added.shape),
        center,
        added.new_empty(rows, dtype=torch.float32),
    )


@add_norm.register_fake
def _(
    added: Tensor, residual: Tensor, weight: Tensor, bias: Any, seed: Any, rate: float, epsilon: float, centered: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _like_norm(added, centered)


@torch.library.custom_op(
    "xlpretrain::add_norm_backward",
    mutates_args=("partials",),
    schema="(Tensor d_output, Tensor total, Tensor center, Tensor factor, Tensor weight, Tensor? seed,"
    " Tensor(a!) partials, int first, float rate, bool biased, bool summed) -> (Tensor, Tensor)",
)
def add_norm_backward(
    d_output: Tensor,
    total: Tensor,
    center: Tensor,
    factor: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    partials: Tensor,
    first: int,
    rate: float,
    biased: bool,
    summed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of residual and added.

    From column `first` on, the partial sums of the gradient of the weight are written; then those of the norm's bias
    (`biased`), and those of a bias that is part of `added` (`summed`).
    """
    d_output, results, tile = d_output.contiguous(), _two_like(total), norm_tile(total.shape[-1])
    threshold, keep_scale, dropout = _levels(rate, seed)
    _launch(
        "add_norm_backward",
        (len(partials),),
        (d_output, total, center, factor, weight, total if seed is None else seed, *results, partials[:, first:]),
        (_rows(total), total.shape[-1], partials.shape[1], threshold, keep_scale),
        tile,
        CENTERED=center.numel() > 0,
        BIASED=biased,
        SUMMED=summed,
        DROPOUT=dropout,
    )
    return results


def _two_like(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return tensor.new_empty(tensor.shape), tensor.new_empty(tensor.shape)


@add_norm_backward.register_fake
def _(d_output: Tensor, total: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _two_like(total)


@torch.library.custom_op(
    "xlpretrain::activate",
    mutates_args=(),
    schema="(Tensor inner, Tensor bias, Tensor? seed, float rate, str activation) -> Tensor",
)
def activate(inner: Tensor, bias: Tensor, seed: Tensor | None, rate: float, activation: str) -> Tensor:
    """dropout(activation(inner + bias)); activation: a key of `ACTIVATIONS`."""
    output, rows, tile = torch.empty_like(inner), _rows(inner), ACTIVATION_TILE
    threshold, keep_scale, dropout = _levels(rate, seed)
    _launch(
        "activate",
        (-(-rows // tile.rows), -(-inner.shape[-1] // tile.columns)),
        (inner, bias, inner if seed is None else seed, output),
        (rows, inner.shape[-1], threshold, keep_scale),
        tile,
        ACTIVATION=activation,
        DROPOUT=dropout,
    )
    return output


@activate.register_fake
def _(inner: Tensor, bias: Tensor, seed: Tensor | None, rate: float, activation: str) -> Tensor:
    return torch.empty_like(inner)


@torch.library.custom_op(
    "xlpretrain::activate_backward",
    mutates_args=("partials",),
    schema="(Tensor d_output, Tensor inner, Tensor bias, Tensor? seed, Tensor(a!) partials, int first, float rate,"
    " str activation) -> (Tensor, Tensor)",
)
def activate_backward(
    d_output: Tensor,
    inner: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    partials: Tensor,
    first: int,
    rate: float,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """The gradient of inner, and the output once more, which so need not be kept.

    The partial sums of the gradient of the bias are written from column `first` on.
    """
    results, tile = _two_like(inner), ACTIVATION_TILE
    threshold, keep_scale, dropout = _levels(rate, seed)
    _launch(
        "activate_backward",
        (len(partials), -(-inner.shape[-1] // tile.columns)),
        (d_output, inner, bias, inner if seed is None else seed, *results, partials[:, first:]),
        (_rows(inner), inner.shape[-1], partials.shape[1], threshold, keep_scale),
        tile,
        ACTIVATION=activation,
        DROPOUT=dropout,
    )
    return results


@activate_backward.register_fake
def _(d_output: Tensor, inner: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _two_like(inner)


@torch.library.custom_op(
    "xlpretrain::bias_queries",
    mutates_args=(),
    schema="(Tensor query, Tensor content_bias, Tensor position_bias, Tensor? segment_bias, Tensor? embedding)"
    " -> (Tensor, Tensor, Tensor)",
)
def bias_queries(
    query: Tensor, content_bias: Tensor, position_bias: Tensor, segment_bias: Tensor | None, embedding: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries by content and by position, "B Q N H", and their scores by segment, "N B Q 2" (or an empty tensor)."""
    results, (num_heads, width), tile = _biased(query, embedding), query.shape[2:], head_tile(query.shape[-1])
    rows = query.shape[:2].numel()
    _launch(
        "bias_queries",
        (-(-rows // tile.rows), num_heads),
        (
            *(query, content_bias, position_bias),
            *(query if segment_bias is None else segment_bias, query if embedding is None else embedding),
            *results,
        ),
        (rows, num_heads),
        tile,
        H=width,
        SEGMENTS=embedding is not None,
    )
    return results


def _biased(query: Tensor, embedding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch_size, num_queries, num_heads, _ = query.shape
    segment = query.new_empty(0 if embedding is None else (num_heads, batch_size, num_queries, 2))
    return (*_two_like(query), segment)


@bias_queries.register_fake
def _(query: Tensor, _: Tensor, __: Tensor, ___: Any, embedding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _biased(query, embedding)


@torch.library.custom_op(
    "xlpretrain::bias_queries_backward",
    mutates_args=("partials",),
    schema="(Tensor d_content, Tensor d_position, Tensor d_segment, Tensor by_content, Tensor content_bias,"
    " Tensor? segment_bias, Tensor? embedding, Tensor(a!) partials, int first) -> Tensor",
)
def bias_queries_backward(
    d_content: Tensor,
    d_position: Tensor,
    d_segment: Tensor,
    by_content: Tensor,
    content_bias: Tensor,
    segment_bias: Tensor | None,
    embedding: Tensor | None,
    partials: Tensor,
    first: int,
) -> Tensor:
    """The gradient of the queries.

    From column `first` on, the partial sums of the gradients of the biases by content and position are written; then
    those of the bias by segment, and of the two vectors of `embedding`.
    """
    d_query, (num_heads, width), tile = (
        torch.empty_like(by_content),
        by_content.shape[2:],
        head_tile(by_content.shape[-1]),
    )
    _launch(
        "bias_queries_backward",
        (len(partials), num_heads),
        (
            *(d_content.contiguous(), d_position.contiguous(), d_segment, by_content, content_bias),
            *(by_content if segment_bias is None else segment_bias, by_content if embedding is None else embedding),
            *(d_query, partials[:, first:]),
        ),
        (by_content.shape[:2].numel(), num_heads, partials.shape[1]),
        tile,
        H=width,
        SEGMENTS=embedding is not None,
    )
    return d_query


@bias_queries_backward.register_fake
def _(d_content: Tensor, d_position: Tensor, d_segment: Tensor, by_content: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(by_content)


@torch.library.custom_op(
    "xlpretrain::column_sums", mutates_args=(), schema="(Tensor partials, ScalarType dtype) -> Tensor"
)
def column_sums(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums of all columns, in a data type."""
    return sum_partials(partials, dtype)


@column_sums.register_fake
def _(partials: Tensor, dtype: torch.dtype) -> Tensor:
    return partials.new_empty(partials.shape[1], dtype=dtype)
