"""Dropout that costs little on CPUs: random bits from SFC64, where torch draws one number after the other.

What is dropped follows from one number, drawn from torch's global generator: `torch.manual_seed` before a step makes it
the same again, recomputation in the backward pass too. That number is all that is kept for the backward pass. A rate is
rounded to 15 bits (bf16) or 31 (fp32), and what stays is scaled by the rounded one, so expectations are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LANES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(nn.Dropout):
    """As torch's; its own way on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        """The input, in training with some elements zero and the others scaled."""
        if not self.training or self.p == 0:
            return input
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(input, self.p)
        dropped: Tensor = _Dropped.apply(input, self.p, new_seed())  # type: ignore[no-untyped-call]
        return dropped


class WeightDropout(nn.Dropout):
    """The attention weights to drop, for an implementation that applies dropout itself."""

    def draw(self) -> int | None:
        """The seed of `dropout_sign_bits`; None: nothing is dropped.

        Not `forward`: DeepSpeed's stage 3 looks for tensors in what that returns, and fails at a number.
        """
        return new_seed() if self.training and self.p > 0 else None


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, rate: float, seed: int) -> Tensor:
        ctx.arguments = rate, seed
        return input * _factors(input, rate, seed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient * _factors(gradient, *ctx.arguments), None, None


def new_seed() -> int:
    """From torch's global generator."""
    return int(torch.randint(2**62, ()))


def keep_scale(rate: float, dtype: torch.dtype) -> float:
    """The factor of the kept elements."""
    _, levels = _lane(dtype)
    return levels / (levels - round(rate * levels))


def dropout_sign_bits(generator: np.random.SFC64, like: Tensor, rate: float) -> Tensor:
    """Integers as wide as the floats of a contiguous tensor, of its shape: the sign bit where dropped, else 0."""
    lane, levels = _lane(like.dtype)
    return (
        _bits(generator, like).bitwise_and_(levels - 1).sub_(round(rate * levels)).bitwise_and_(torch.iinfo(lane).min)
    )


def _factors(like: Tensor, rate: float, seed: int) -> Tensor:
    """0 where dropped, else the scale, as floats whose bits are put together."""
    lane, levels = _lane(like.dtype)
    bits = _bits(np.random.SFC64(seed), like).bitwise_or_(-levels).add_(round(rate * levels))  # below 0 where kept
    scale = torch.tensor(keep_scale(rate, like.dtype), dtype=like.dtype).view(lane)
    return bits.bitwise_right_shift_(torch.iinfo(lane).bits - 1).bitwise_and_(scale).view(like.dtype)


def _lane(dtype: torch.dtype) -> tuple[torch.dtype, int]:
    """The integers as wide as a float, and into how many levels a rate is rounded: all bits but the sign."""
    lane = _LANES[dtype.itemsize]
    return lane, 2 ** (torch.iinfo(lane).bits - 1)


def _bits(generator: np.random.SFC64, like: Tensor) -> Tensor:
    """Random integers as wide as the floats of a tensor, and of its shape."""
    num_words = max(1, -(-like.numel() * like.itemsize // 8))  # torch cannot view an array of none as another type
    raw = torch.from_numpy(generator.random_raw(num_words).view(np.int64))
    return raw.view(_LANES[like.itemsize])[: like.numel()].view(like.shape)
