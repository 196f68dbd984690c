"""-log p(target) over a vocabulary, some rows at a time: all logits are never held, neither forward nor backward.

Shapes: N positions, D width, V vocabulary; c rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LOGITS = 2**23
"""Logits of a chunk, about: 32 MB."""


class ChunkedLoss(torch.autograd.Function):
    """-log softmax(hidden weight^T + bias)[target] in fp32; the backward pass computes the logits again."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
        nll_N = hidden_ND.new_empty(len(targets_N), dtype=torch.float32)
        normalizers_N = torch.empty_like(nll_N)
        for rows in _chunks(len(targets_N), len(weight_VD)):
            logits_cV = F.linear(hidden_ND[rows], weight_VD, bias_V).float()
            target_c = logits_cV.gather(1, targets_N[rows, None])[:, 0]
            largest_c = logits_cV.amax(dim=-1)
            normalizers_N[rows] = logits_cV.sub_(largest_c[:, None]).exp_().sum(dim=-1).log_().add_(largest_c)
            nll_N[rows] = normalizers_N[rows] - target_c
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normalizers_N)
        return nll_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, normalizers_N = ctx.saved_tensors
        d_hidden_ND = torch.empty_like(hidden_ND)
        d_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        d_bias_V = torch.zeros_like(bias_V, dtype=torch.float32)
        for rows in _chunks(len(targets_N), len(weight_VD)):
            towards_c1 = gradients[0][rows, None]
            d_logits_cV = F.linear(hidden_ND[rows], weight_VD, bias_V).float()
            d_logits_cV.sub_(normalizers_N[rows, None]).exp_().mul_(towards_c1)
            d_logits_cV.scatter_add_(1, targets_N[rows, None], -towards_c1)
            d_bias_V += d_logits_cV.sum(dim=0)
            d_logits_cV = d_logits_cV.to(hidden_ND.dtype)
            d_hidden_ND[rows] = d_logits_cV @ weight_VD
            d_weight_VD += (d_logits_cV.T @ hidden_ND[rows]).float()
        return d_hidden_ND, d_weight_VD.to(weight_VD.dtype), d_bias_V.to(bias_V.dtype), None


def _chunks(num_rows: int, vocab_size: int) -> Iterator[slice]:
    """Slices of about `_LOGITS` logits each."""
    size = max(1, _LOGITS // vocab_size)
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))
