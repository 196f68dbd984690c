"""Samples of different lengths packed one after the other, so that no layer computes padding.

Shapes: B samples, T positions, V valid tokens of all samples, D d_model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def valid_tokens(valid: np.ndarray) -> tuple[Int[Tensor, " V"], Int[Tensor, " _"]]:
    """The fields `valid_at` and `valid_from` of `BackboneInput`, by which samples are packed.

    valid: True for the real tokens [B, T].
    """
    offsets = np.concatenate([[0], valid.sum(axis=1, dtype=np.int64).cumsum()])
    return torch.from_numpy(np.flatnonzero(valid)), torch.from_numpy(offsets.astype(np.int32))


def pack(hidden: Float[Tensor, "B T D"], valid_at: Int[Tensor, " V"]) -> Float[Tensor, "1 V D"]:
    """The hidden states of the valid tokens."""
    packed: Tensor = _Rows.apply(hidden.flatten(0, 1), valid_at)  # type: ignore[no-untyped-call]
    return packed[None]


def unpack(
    packed: Float[Tensor, "1 V D"], valid_at: Int[Tensor, " V"], *, batch_size: int, num_tokens: int
) -> Float[Tensor, "B T D"]:
    """The hidden states in their places, and zeros for padding."""
    spread: Tensor = _Spread.apply(packed.flatten(0, 1), valid_at, batch_size * num_tokens)  # type: ignore[no-untyped-call]
    return spread.view(batch_size, num_tokens, -1)


class _Rows(torch.autograd.Function):
    """Some rows, each at most once, so that the gradient is written and not summed, in no particular order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _spread(gradients[0], index, ctx.num_rows), None


class _Spread(torch.autograd.Function):
    """Zeros, with rows at some places."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return _spread(rows, index, num_rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradients[0].index_select(0, index), None, None


def _spread(rows: Tensor, index: Tensor, num_rows: int) -> Tensor:
    return rows.new_zeros(num_rows, rows.shape[1]).index_copy_(0, index, rows)
