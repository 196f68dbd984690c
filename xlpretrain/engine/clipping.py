"""Clipping by the exact global gradient norm: on the host, or on the device without waiting for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

LARGEST_NORM = math.sqrt(torch.finfo(torch.float32).max)
"""Largest finite norm: the square of a gradient of more than this overflows in fp32, in the optimizer's moments."""


@torch.no_grad()
def clip_by_global_norm(gradients: Sequence[Tensor], max_norm: float) -> float:
    """Scale gradients in place to a global L2 norm of at most `max_norm` (0: no scaling). Returns the norm before.

    The norm is accumulated in float64 over parts of 1024 elements: torch's fp32 norm of 2M elements on CPU was measured
    to be off by 1e-3, and its float64 norm takes 28 times as long as this.
    """
    parts = [_norms(gradient.view(-1)) for gradient in gradients]
    norm = float(torch.linalg.vector_norm(torch.cat(parts), dtype=torch.float64))
    if 0 < max_norm < norm < float("inf"):
        torch._foreach_mul_(list(gradients), max_norm / norm)
    return norm


def _norms(flat: Tensor) -> Tensor:
    """L2 norms of the parts of a flat tensor."""
    whole = flat.numel() // 1024 * 1024
    return torch.cat(
        [torch.linalg.vector_norm(part, dim=1) for part in (flat[:whole].view(-1, 1024), flat[None, whole:])]
    )


@dataclass(frozen=True)
class ClippedOnDevice:
    """The outcome of clipping, on the device.

    norm: the global norm before clipping; inf or NaN if it is not finite. is_finite: True if the update is to be made.
    found_inf: 0 if it is finite, else 1, as torch's fused optimizers take it.
    """

    norm: Float64[Tensor, ""]
    is_finite: Bool[Tensor, ""]
    found_inf: Float[Tensor, ""]


@torch.no_grad()
def clip_on_device(flat: Float[Tensor, " N"], max_norm: float) -> ClippedOnDevice:
    """Scale the flattened gradient in place like `clip_by_global_norm`, without reading a value.

    If the norm is not finite, the gradient is left with any values.
    """
    norm = torch.linalg.vector_norm(flat, dtype=torch.float64)
    is_finite = norm <= LARGEST_NORM  # False for NaN
    ok = is_finite.float()
    if max_norm > 0:
        flat.div_((norm / max_norm).clamp(min=1).float())
    return ClippedOnDevice(norm / ok, is_finite, 1 - ok)
