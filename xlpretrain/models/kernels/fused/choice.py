"""The check of a device before fused relative attention is used: it can run there, and computes the right thing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xlpretrain.errors import ConfigError, XLPretrainError
from xlpretrain.extras import how_to_install, is_missing
from xlpretrain.models.attention import Attention, Implementation, RelativeAttention
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.fused.operators import draw_seed, fused_relative_attention
from xlpretrain.models.kernels.fused.reference import attention_written_down
from xlpretrain.models.kernels.fused.visibility import Visibility, visibility
from xlpretrain.schema import format_problems

_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 4e-2}
"""Largest difference from the formula in fp32, as a share of the largest number; fp32 may be rounded to TF32."""


class Kind(NamedTuple):
    """The properties of an attention that its programs are compiled for."""

    dtype: torch.dtype
    width: int
    """Width of a head."""
    rate: float
    """Dropout of the weights."""
    causal: bool
    """A causal decoder; otherwise two streams with segments and samples read in either direction."""


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
    one = relative[0]
    return why_not(device) or fault(device, Kind(dtype, one.d_head, one.dropout.p, causal=not one.bidirectional))


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
def fault(device: torch.device, kind: Kind) -> str | None:
    """Compare a small attention and its gradients with the formula in fp32. Returns what is wrong; None: nothing.

    The programs are compiled for it, which takes seconds, and are those of the model. A device that differs, or a
    compiler that fails, is a reason to use another implementation.
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
    arguments, segment, view = _example(device, kind)
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


def _example(device: torch.device, kind: Kind) -> tuple[list[Tensor], Tensor, Visibility]:
    """Random arguments, rounded to the data type: several tiles, none of them whole, and a query that sees nothing."""
    samples, tokens, memory, heads, predictions = 2, 70, 45, 2, 9
    generator = torch.Generator().manual_seed(0)
    inputs = BackboneInput(torch.zeros(samples, tokens, dtype=torch.int64), torch.tensor([0, 20]))
    if not kind.causal:
        order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(samples)])
        inputs = BackboneInput(
            inputs.tokens,
            inputs.mem_valid_len,
            segments=torch.randint(2, (samples, tokens), generator=generator),
            perm_rank=order,
            target_positions=order[:, :predictions],
            reversed=torch.tensor([False, True]),
        )
    view = visibility(inputs.map(lambda tensor: tensor.to(device)), mem_len=memory, causal=kind.causal)
    (_, _, num_queries), num_keys = view.queries.shape, view.keys.shape[2]
    of_queries, of_keys = (samples, num_queries, heads, kind.width), (samples, num_keys, heads, kind.width)
    sets, num_distances = (1, num_keys + 8) if kind.causal else (2, num_keys + tokens)
    shapes: list[tuple[int, ...]] = [of_queries, of_keys, of_keys, of_queries, (sets, num_distances, heads, kind.width)]
    shapes.append((heads, samples, num_queries, 2))
    *arguments, segment = (torch.randn(shape, generator=generator).to(device, kind.dtype).float() for shape in shapes)
    return arguments, segment, view
