"""The check of a device before fused relative attention is used: it can run there, and computes the right thing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from xlpretrain.errors import ConfigError, XLPretrainError
from xlpretrain.extras import how_to_install, is_missing
from xlpretrain.models.attention import Attention, Implementation, RelativeAttention
from xlpretrain.models.kernels.fused.autotune import fastest_tiles
from xlpretrain.models.kernels.fused.example import SMALL, Kind, example
from xlpretrain.models.kernels.fused.operators import draw_seed, fused_relative_attention
from xlpretrain.models.kernels.fused.reference import attention_written_down
from xlpretrain.models.kernels.fused.tiles import Tiles, describe, tiles, use_tiles
from xlpretrain.schema import format_problems

_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 4e-2}
"""Largest difference from the formula in fp32, as a share of the largest number; fp32 may be rounded to TF32."""


def choose_attention(
    model: nn.Module, wanted: Implementation | None, *, device: torch.device, dtype: torch.dtype
) -> Implementation | None:
    """Set the implementation of a model's attention, and return it. None: as it was, by default chosen by device.

    Fused attention is used only where it is asked for, since its speed has not been measured on any GPU.

    Args:
        wanted: the implementation that was asked for.
        dtype: of the weights in forward and backward.

    Raises:
        ConfigError: `fused` was asked for where it cannot run, or where a small case differs from the formula.
    """
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    if wanted == "fused":
        relative = [module for module in attentions if isinstance(module, RelativeAttention)]
        if problem := _problem(relative, device, dtype):
            raise ConfigError(format_problems("engine", [("attention", f"fused: {problem}; use null")]))
    if wanted is not None:
        for module in attentions:
            module.implementation = wanted
    return wanted


def _problem(relative: Sequence[RelativeAttention], device: torch.device, dtype: torch.dtype) -> str | None:
    if not relative:
        return "only relative attention has such a kernel (Transformer-XL, XLNet)"
    kind = _kind(relative[0], dtype)
    return why_not(device) or fault(device, kind, tiles(device, dtype, kind.width))


def set_tiles(
    model: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    add_up: Callable[[Sequence[float]], Sequence[float]] | None = None,
) -> str | None:
    """Use the table's tiles for a model's fused attention, or with `add_up` the fastest. Returns what was timed best.

    add_up: sums times over the ranks, which so agree.
    """
    one = next((module for module in model.modules() if isinstance(module, RelativeAttention)), None)
    if one is None or why_not(device):
        return None
    use_tiles(device, dtype, one.d_head, None)
    if add_up is None:
        return None
    return describe(fastest_tiles(device, _kind(one, dtype), num_heads=one.num_heads, add_up=add_up))


def _kind(one: RelativeAttention, dtype: torch.dtype) -> Kind:
    return Kind(dtype, one.d_head, one.dropout.p, causal=not one.bidirectional)


def why_not(device: torch.device) -> str | None:
    """The reason why fused attention cannot run on a device, and what would help; None if it can."""
    if is_missing("triton"):
        return f"Triton is not installed; {how_to_install('triton')}"
    if device.type == "meta" or (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, and this runs on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0) or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or newer, and {device} has {capability}"
    return None


@functools.cache
def fault(device: torch.device, kind: Kind, in_use: Tiles) -> str | None:
    """Compare a small attention and its gradients with the formula in fp32. Returns what is wrong; None: nothing.

    The programs are compiled for it, which takes seconds, and are those of the model. A device that differs, or a
    compiler that fails, is a reason to use another implementation.

    in_use: the tiles in use, which decide what is compiled.
    """
    try:
        difference = _difference(device, kind)
    except Exception as error:  # anything that a compiler or a driver may raise
        reason = f"{type(error).__name__}: {error}"
        try:
            torch.zeros(1, device=device).tolist()
        except RuntimeError:
            text = f"fused attention left {device} in a state of error ({reason}); set engine.attention to sdpa"
            raise XLPretrainError(text) from error
        return reason
    if difference <= _LIMITS[kind.dtype]:
        return None
    return f"differs from the formula by {difference:.1e} (at most {_LIMITS[kind.dtype]:.0e} is rounding)"


def _difference(device: torch.device, kind: Kind) -> float:
    """The largest difference of the output and each gradient from the formula, relative to its largest number."""
    arguments, segment, view = example(device, kind, SMALL)
    seed = draw_seed(device) if kind.rate else None
    settings = {"scale": kind.width**-0.5, "rate": kind.rate, "seed": seed}
    towards = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(1)).to(device)
    found = []
    attentions: list[tuple[Callable[..., Tensor], torch.dtype]] = [
        (fused_relative_attention, kind.dtype),
        (attention_written_down, torch.float32),
    ]
    for attention, dtype in attentions:
        inputs = [each.to(dtype).requires_grad_() for each in (*arguments, segment)]
        output = attention(*inputs[:-1], None if kind.causal else inputs[-1], view, **settings)
        learned = inputs[:-1] if kind.causal else inputs
        gradients = torch.autograd.grad((output * towards).sum(), learned)
        found.append([output.detach().float(), *(each.float() for each in gradients)])
    differences = [(ours - right).abs().max() / right.abs().max() for ours, right in zip(*found, strict=True)]
    return float(torch.stack(differences).nan_to_num(torch.inf).max())
