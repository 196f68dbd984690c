"""-log p(target) over a vocabulary on accelerators: whole chunks of logits, a few kernels for each.

Largest temporary memory, with 2**28 logits in a chunk and 2**27 in fp32 at a time: 1.5 GiB in bf16 (2 bytes for each
logit, 8 for those in fp32: a copy and its log-softmax), 2 GiB in fp32 (logits and their gradients). The logits of the
first chunk are kept for the backward pass, at most 512 MiB in bf16; those of others are computed again.

Shapes: N positions, D width, V vocabulary; K positions of the first chunk, c positions of a chunk, p of a piece of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LOGITS = 2**28
"""Largest number of logits in a chunk, or one position's if those are more."""
_FP32_LOGITS = 2**27
"""Largest number of logits copied to fp32 at a time, or one position's if those are more."""


def device_loss(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(hidden weight^T + bias)[target] [N] in fp32. The first three tensors have the same dtype.

    While torch.compile traces it, it is one operator: its graph does not depend on the number of positions.
    """
    if torch.compiler.is_compiling():
        nll_N: Tensor = _compiled_loss(hidden_ND, weight_VD, bias_V, targets_N)[0]
    else:
        nll_N = DeviceLoss.apply(hidden_ND, weight_VD, bias_V, targets_N)  # type: ignore[no-untyped-call]
    return nll_N


class DeviceLoss(torch.autograd.Function):
    """-log softmax(hidden weight^T + bias)[target] in fp32; the gradients have the dtype of the inputs."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
        nll_N, *kept = _forward(hidden_ND, weight_VD, bias_V, targets_N)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, *kept)
        return nll_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(gradients[0], *ctx.saved_tensors), None)


def _forward(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The losses, their negatives log p(target) [N, 1], and the logits of the first chunk."""
    log_probs_N1 = hidden_ND.new_empty(len(targets_N), 1, dtype=torch.float32)
    kept_KV = None
    for rows in _slices(targets_N, _rows(_LOGITS, weight_VD)):
        logits_cV = F.linear(hidden_ND[rows], weight_VD, bias_V)
        targets_c1, log_probs_c1 = targets_N[rows, None], log_probs_N1[rows]
        for piece in _slices(targets_c1, _rows(_FP32_LOGITS, weight_VD)):
            log_probs_pV = torch.log_softmax(logits_cV[piece], dim=-1, dtype=torch.float32)
            torch.gather(log_probs_pV, 1, targets_c1[piece], out=log_probs_c1[piece])
        kept_KV = logits_cV if kept_KV is None else kept_KV
    kept_KV = hidden_ND.new_empty(0, len(weight_VD)) if kept_KV is None else kept_KV
    return -log_probs_N1[:, 0], log_probs_N1, kept_KV


def _backward(
    towards_N: Tensor,
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    log_probs_N1: Tensor,
    kept_KV: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, weight and bias. Those of several chunks are added in fp32."""
    if not len(targets_N):
        return torch.zeros_like(hidden_ND), torch.zeros_like(weight_VD), torch.zeros_like(bias_V)
    d_hidden_ND, d_weight_VD, d_bias_V = torch.empty_like(hidden_ND), weight_VD, bias_V
    dtype = weight_VD.dtype
    # p(target) - 1 from fp32 numbers: where p is near 1, the difference of rounded ones would have no correct digit.
    at_target_N1 = torch.expm1(log_probs_N1).to(dtype)
    for number, rows in enumerate(_slices(targets_N, _rows(_LOGITS, weight_VD))):
        logits_cV = F.linear(hidden_ND[rows], weight_VD, bias_V) if number else kept_KV
        d_logits_cV = torch.softmax(logits_cV, dim=-1, dtype=dtype)
        d_logits_cV.scatter_(1, targets_N[rows, None], at_target_N1[rows]).mul_(towards_N[rows, None])
        torch.mm(d_logits_cV, weight_VD, out=d_hidden_ND[rows])
        in_weight_VD, in_bias_V = d_logits_cV.T @ hidden_ND[rows], d_logits_cV.sum(dim=0)
        d_weight_VD = d_weight_VD.float().add_(in_weight_VD) if number else in_weight_VD
        d_bias_V = d_bias_V.float().add_(in_bias_V) if number else in_bias_V
    return d_hidden_ND, d_weight_VD.to(dtype), d_bias_V.to(dtype)


def _slices(rows: Tensor, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size))


def _rows(num_logits: int, weight_VD: Tensor) -> int:
    return max(1, num_logits // weight_VD.shape[0])


@torch.library.custom_op(
    "xlpretrain::device_loss",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor bias, Tensor targets) -> (Tensor, Tensor, Tensor)",
)
def _compiled_loss(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(hidden_ND, weight_VD, bias_V, targets_N)


@torch.library.custom_op(
    "xlpretrain::device_loss_backward",
    mutates_args=(),
    schema="(Tensor towards, Tensor hidden, Tensor weight, Tensor bias, Tensor targets, Tensor log_probs, Tensor kept)"
    " -> (Tensor, Tensor, Tensor)",
)
def _compiled_backward(
    towards_N: Tensor,
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    log_probs_N1: Tensor,
    kept_KV: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(towards_N, hidden_ND, weight_VD, bias_V, targets_N, log_probs_N1, kept_KV)


@_compiled_loss.register_fake
def _(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.sym_min(targets_N.shape[0], _rows(_LOGITS, weight_VD))  # type: ignore[no-untyped-call]
    log_probs_N1 = hidden_ND.new_empty(targets_N.shape[0], 1, dtype=torch.float32)
    return log_probs_N1.new_empty(targets_N.shape[0]), log_probs_N1, hidden_ND.new_empty(kept, weight_VD.shape[0])


@_compiled_backward.register_fake
def _(
    towards_N: Tensor, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden_ND), torch.empty_like(weight_VD), torch.empty_like(bias_V)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *towards: Tensor | None) -> tuple[Tensor | None, ...]:
    if towards[0] is None:
        return None, None, None, None
    return (*_compiled_backward(towards[0], *ctx.saved_tensors), None)


_compiled_loss.register_autograd(_gradients, setup_context=_save)
