"""-log p(target) over a vocabulary, computed in chunks, so that at most one chunk of logits is in memory.

CPUs process a chunk in pieces that fit the cache; other devices, and compiled code, process it whole (`device_loss`).

Shapes: N positions, D width, V vocabulary; c rows of a chunk, p rows of a piece of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xlpretrain.models.kernels.device_loss import device_loss

_LOGITS = 2**24
"""Approximate number of logits in a chunk: 32 MB in bf16. A single chunk is kept for the backward pass."""
_PIECE = 2**18
"""Number of logits processed at a time in fp32: 1 MB, which fits the cache."""


def chunked_loss(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(hidden weight^T + bias)[target] [N] in fp32, computed in autocast's dtype if it is enabled."""
    device = hidden_ND.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, weight_VD, bias_V = (tensor.to(dtype) for tensor in (hidden_ND, weight_VD, bias_V))
    if device != "cpu" or torch.compiler.is_compiling():
        return device_loss(hidden_ND, weight_VD, bias_V, targets_N)
    nll_N: Tensor = ChunkedLoss.apply(hidden_ND, weight_VD, bias_V, targets_N)  # type: ignore[no-untyped-call]
    return nll_N


class ChunkedLoss(torch.autograd.Function):
    """-log softmax(hidden weight^T + bias)[target] in fp32; several chunks: backward recomputes the logits."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
        nll_N = hidden_ND.new_empty(len(targets_N), dtype=torch.float32)
        normalizers_N = torch.empty_like(nll_N)
        logits_cV = None
        for rows in _slices(nll_N, len(weight_VD), _LOGITS):
            logits_cV = F.linear(hidden_ND[rows], weight_VD, bias_V)
            nll_c, normalizers_c, targets_c = nll_N[rows], normalizers_N[rows], targets_N[rows]
            for piece in _slices(nll_c, len(weight_VD), _PIECE):
                logits_pV = logits_cV[piece].float()
                torch.logsumexp(logits_pV, dim=-1, out=normalizers_c[piece])
                target_p = logits_pV.gather(1, targets_c[piece, None])[:, 0]
                torch.sub(normalizers_c[piece], target_p, out=nll_c[piece])
        kept_NV = logits_cV if logits_cV is not None and len(logits_cV) == len(nll_N) else None
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normalizers_N, kept_NV)
        return nll_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, normalizers_N, kept_NV = ctx.saved_tensors
        d_hidden_ND = torch.empty_like(hidden_ND)
        d_weight_VD: Tensor | None = None
        d_bias_V = torch.zeros_like(bias_V, dtype=torch.float32)
        for rows in _slices(targets_N, len(weight_VD), _LOGITS):
            logits_cV = F.linear(hidden_ND[rows], weight_VD, bias_V) if kept_NV is None else kept_NV
            d_logits_cV = torch.empty_like(logits_cV)
            towards_c, normalizers_c, targets_c = gradients[0][rows], normalizers_N[rows], targets_N[rows]
            for piece in _slices(towards_c, len(weight_VD), _PIECE):
                towards_p1 = towards_c[piece, None]
                d_logits_pV = logits_cV[piece].float().sub_(normalizers_c[piece, None]).exp_().mul_(towards_p1)
                d_logits_pV.scatter_add_(1, targets_c[piece, None], -towards_p1)
                d_bias_V += d_logits_pV.sum(dim=0)
                d_logits_cV[piece] = d_logits_pV
            torch.mm(d_logits_cV, weight_VD, out=d_hidden_ND[rows])
            added_VD = d_logits_cV.T @ hidden_ND[rows]
            d_weight_VD = added_VD if d_weight_VD is None else d_weight_VD.float().add_(added_VD.float())
        if d_weight_VD is None:
            d_weight_VD = torch.zeros_like(weight_VD)
        return d_hidden_ND, d_weight_VD.to(weight_VD.dtype), d_bias_V.to(bias_V.dtype), None


def _slices(rows: Tensor, vocab_size: int, num_logits: int) -> Iterator[slice]:
    """Slices of the rows with about `num_logits` logits each."""
    size = max(1, num_logits // vocab_size)
    return (slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size))
