"""The check of a device before layers are computed as a whole: their programs compute the right thing there."""

from __future__ import annotations

import functools
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from xlpretrain.errors import ConfigError
from xlpretrain.models.attention import Attention, Implementation, RelativeAttention
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.parts.feed_forward import MLP, Activation
from xlpretrain.models.parts.norm import LayerNormConfig, RMSNormConfig
from xlpretrain.models.stack import Layer, RelativeConfig, StackedBackbone
from xlpretrain.models.transformer_xl import TransformerXLConfig
from xlpretrain.models.xlnet import XLNetConfig
from xlpretrain.schema import format_problems

_LIMITS = {torch.float32: 1e-2, torch.bfloat16: 0.1}
"""Largest difference from the layer's parts in fp32, as a share of the norm; fp32 may be rounded to TF32."""


class Kind(NamedTuple):
    """The properties of a layer that its programs are compiled for."""

    dtype: torch.dtype
    width: int
    """Width of a head."""
    activation: Activation
    centered: bool
    """True for LayerNorm, False for RMSNorm."""
    causal: bool


def choose_whole_layers(model: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
    """Compute the layers of a model with fused attention as a whole, if the programs compute such layers.

    Raises:
        ConfigError: a small case cannot run, or differs from the layer's parts.
    """
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    if not layers or not all(layer.parts() for layer in layers):
        return
    one, feed_forward = cast(RelativeAttention, layers[0].attention), cast(MLP, layers[0].feed_forward)
    centered = isinstance(layers[0].attention_norm, nn.LayerNorm)
    kind = Kind(dtype, one.d_head, feed_forward.activation_name, centered, causal=not one.bidirectional)
    if problem := fault(device, kind):
        raise ConfigError(format_problems("engine", [("attention", f"fused: {problem}; use null")]))
    for layer in layers:
        layer.whole = True


@functools.cache
def fault(device: torch.device, kind: Kind) -> str | None:
    """Compare a small model with its parts in fp32: output and all gradients. Returns what is wrong; None: nothing."""
    try:
        found, right = (_results(device, kind, whole=whole) for whole in (True, False))
    except Exception as error:  # anything that a compiler or a driver may raise
        return f"the programs of a layer: {type(error).__name__}: {error}"
    differences = [
        (ours - exact).norm() / exact.norm().clamp(min=1e-6) for ours, exact in zip(found, right, strict=True)
    ]
    difference = float(torch.stack(differences).nan_to_num(torch.inf).max())
    if difference <= _LIMITS[kind.dtype]:
        return None
    return f"a layer differs from its parts by {difference:.1e} (at most {_LIMITS[kind.dtype]:.0e} is rounding)"


def _results(device: torch.device, kind: Kind, *, whole: bool) -> list[Tensor]:
    """The output and all gradients of the layer of a small model, with the same weights and inputs every time."""
    config = _config(kind)
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        torch.manual_seed(0)
        model = cast(StackedBackbone, config.build(8)).to(kind.dtype).to(torch.float32).to(device)
    model = model.to(kind.dtype) if whole else model
    implementation: Implementation = "fused" if whole else "plain"
    for module in model.modules():
        if isinstance(module, Attention):
            module.implementation = implementation
        if isinstance(module, Layer):
            module.whole = whole
    tokens = torch.arange(2 * 33, device=device).view(2, 33) % 8
    hidden, _ = model(BackboneInput(tokens, torch.zeros(2, dtype=torch.int64, device=device)), model.empty_memory(2, 5))
    towards = torch.linspace(-1, 1, hidden.tokens.numel(), device=device).sin().view_as(hidden.tokens)
    (hidden.tokens.float() * towards).sum().backward()
    gradients = [parameter.grad for parameter in model.layers.parameters()]
    return [hidden.tokens.detach().float(), *(each.float() for each in gradients if each is not None)]


def _config(kind: Kind) -> RelativeConfig:
    config = TransformerXLConfig if kind.causal else XLNetConfig
    return config(
        num_layers=1,
        d_model=64,
        num_heads=2,
        d_head=kind.width,
        d_ff=144,
        mem_len=5,
        dropout=0.0,
        attention_dropout=0.0,
        activation=kind.activation,
        norm=LayerNormConfig() if kind.centered else RMSNormConfig(),
    )
