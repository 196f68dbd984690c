"""Fast dropout on CPUs: random bits in bulk from SFC64, while torch draws numbers one by one.

The dropped elements follow from one seed, drawn from torch's global generator, so `torch.manual_seed` before a step
makes them reproducible, also when layers are recomputed in the backward pass. Only the seed is kept for the backward
pass. The rate is rounded to 15 bits (bf16) or 31 (fp32), and kept elements are scaled by the rounded rate, so
expectations are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LANES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(nn.Dropout):
    """Drop-in replacement for `nn.Dropout`, with its own implementation on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero some elements of the input and scale the others, in training mode; otherwise return it unchanged."""
        if not self.training or self.p == 0:
            return input
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(input, self.p)
        dropped: Tensor = _Dropped.apply(input, self.p, new_seed())  # type: ignore[no-untyped-call]
        return dropped


class WeightDropout(nn.Dropout):
    """Dropout of attention weights, for implementations that apply dropout themselves."""

    def draw(self) -> int | None:
        """Draw a seed for `dropout_sign_bits`; None if nothing is dropped.

        Not named `forward`, because DeepSpeed's stage 3 looks for tensors in its result and fails on a number.
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
    """A seed drawn from torch's global generator."""
    return int(torch.randint(2**62, ()))


def keep_scale(rate: float, dtype: torch.dtype) -> float:
    """The factor by which kept elements are scaled."""
    _, levels = _lane(dtype)
    return levels / (levels - round(rate * levels))


def dropout_sign_bits(generator: np.random.SFC64, like: Tensor, rate: float) -> Tensor:
    """Integers of the width of a contiguous tensor's floats, in its shape: the sign bit if dropped, else 0."""
    lane, levels = _lane(like.dtype)
    return (
        _bits(generator, like).bitwise_and_(levels - 1).sub_(round(rate * levels)).bitwise_and_(torch.iinfo(lane).min)
    )


def _factors(like: Tensor, rate: float, seed: int) -> Tensor:
    """0 where dropped, else the scale, as floats assembled from bits."""
    lane, levels = _lane(like.dtype)
    bits = _bits(np.random.SFC64(seed), like).bitwise_or_(-levels).add_(round(rate * levels))  # negative where kept
    scale = torch.tensor(keep_scale(rate, like.dtype), dtype=like.dtype).view(lane)
    return bits.bitwise_right_shift_(torch.iinfo(lane).bits - 1).bitwise_and_(scale).view(like.dtype)


def _lane(dtype: torch.dtype) -> tuple[torch.dtype, int]:
    """The integer type of a float's width, and the number of levels to which a rate is rounded (2^(bits - 1))."""
    lane = _LANES[dtype.itemsize]
    return lane, 2 ** (torch.iinfo(lane).bits - 1)


def _bits(generator: np.random.SFC64, like: Tensor) -> Tensor:
    """Random integers of the width of a tensor's floats, in its shape."""
    num_words = max(1, -(-like.numel() * like.itemsize // 8))  # torch cannot view an empty array as another dtype
    raw = torch.from_numpy(generator.random_raw(num_words).view(np.int64))
    return raw.view(_LANES[like.itemsize])[: like.numel()].view(like.shape)
