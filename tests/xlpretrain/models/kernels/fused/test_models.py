"""Whole models with fused attention against the same with the plain formula: losses, memories and every gradient."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from repository import ROOT

from xlpretrain.extras import is_missing
from xlpretrain.models import TransformerXLConfig, XLNetConfig
from xlpretrain.models.attention import Attention
from xlpretrain.models.backbone import Backbone, BackboneConfig, BackboneInput
from xlpretrain.planning.device_work import counted

SAMPLES, TOKENS, MEMORY, VOCAB = 2, 19, 6, 40
TINY: dict[str, Any] = {"num_layers": 2, "d_model": 12, "num_heads": 2, "d_ff": 16, "mem_len": MEMORY, "dropout": 0.0}
DECODERS = [
    {"same_length": True, "clamp_len": 5},
    {"untie_r": True, "initial_memory": "zeros", "pre_norm": True},
]
pytestmark = [
    pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed"),
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]


def build(config: BackboneConfig, implementation: str, device: str = "cpu") -> Backbone:
    torch.manual_seed(0)
    model = config.build(VOCAB).to(device)
    for module in model.modules():
        if isinstance(module, Attention):
            module.implementation = implementation  # type: ignore[assignment]
    return model


def two_streams(device: str = "cpu") -> BackboneInput:
    """Either direction, segments, padding, an order, and predictions."""
    generator = torch.Generator().manual_seed(1)
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(SAMPLES)])
    return BackboneInput(
        torch.randint(VOCAB, (SAMPLES, TOKENS), generator=generator),
        torch.tensor([2, MEMORY]),
        attention_mask=torch.arange(TOKENS) < torch.tensor([[TOKENS], [TOKENS - 4]]),
        segments=torch.randint(2, (SAMPLES, TOKENS), generator=generator),
        perm_rank=order,
        target_positions=order[:, :5],
        reversed=torch.tensor([False, True]),
    ).map(lambda tensor: tensor.to(device))


def everything(model: Backbone, inputs: BackboneInput) -> Iterator[torch.Tensor]:
    """Hidden states and memory of two steps, and the gradients of all parameters."""
    mems = model.empty_memory(SAMPLES, MEMORY)
    total: Any = 0
    for _ in range(2):
        hidden, mems = model(inputs, mems)
        for states in (hidden.tokens, hidden.predictions):
            if states is not None:
                total = total + (states * torch.linspace(-1, 1, states.shape[-1])).square().sum()
                yield states
        yield mems
    total.backward()
    yield from (torch.zeros(()) if p.grad is None else p.grad for p in model.parameters())


def agree(config: BackboneConfig, inputs: BackboneInput) -> None:
    fused, plain = (list(everything(build(config, name), inputs)) for name in ("fused", "plain"))
    for ours, exact in zip(fused, plain, strict=True):
        assert (ours - exact).abs().max() <= 2e-5 * exact.abs().max().clamp(min=1e-2)


@pytest.mark.parametrize("keys", [DECODERS[0], pytest.param(DECODERS[1], marks=pytest.mark.full)])
def test_transformer_xl_is_the_same(keys: dict[str, Any]):
    tokens = torch.randint(VOCAB, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(1))
    agree(TransformerXLConfig(**TINY, **keys), BackboneInput(tokens, torch.tensor([2, MEMORY])))


def test_xlnet_is_the_same():
    agree(XLNetConfig(**TINY, attention_dropout=0.0), two_streams())


@pytest.mark.full
def test_xlnet_without_an_order_or_segments_is_the_same():
    whole = two_streams()
    inputs = BackboneInput(whole.tokens, whole.mem_valid_len, target_positions=whole.target_positions)
    agree(XLNetConfig(**TINY, attention_dropout=0.0), inputs)


def test_checkpointed_layers_drop_the_same_weights():
    found = []
    for checkpointing in (False, True):
        model = build(XLNetConfig(**{**TINY, "num_layers": 1}, attention_dropout=0.5), "fused").train()
        model.activation_checkpointing = checkpointing
        torch.manual_seed(3)
        hidden, _ = model(two_streams(), model.empty_memory(SAMPLES, MEMORY))
        hidden.predictions.square().sum().backward()
        found.append([hidden.predictions, *(p.grad for p in model.layers.parameters())])
    for with_it, without in zip(*found, strict=True):
        assert torch.equal(with_it, without)


@pytest.mark.full
def test_a_compiler_takes_it_without_a_break():
    """In a process of its own, in which types are not checked: that would break the graph."""
    command = [sys.executable, "-W", "ignore", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_on_an_accelerator_it_is_one_operation_each_way():
    model = build(XLNetConfig(**TINY), "fused", "meta").train()
    with counted() as operations:
        hidden, _ = model(two_streams("meta"), model.empty_memory(SAMPLES, MEMORY))
        hidden.predictions.sum().backward()
    assert operations.counts["fused_relative_attention"] == TINY["num_layers"]
    assert operations.counts["fused_relative_attention_backward"] == TINY["num_layers"]


def compiled_and_not() -> None:
    """Check that a layer that is compiled as one graph has the outputs and gradients of one that is not."""
    config = XLNetConfig(**{**TINY, "num_layers": 1}, attention_dropout=0.0)
    found = []
    for compiled in (True, False):
        model = build(config, "fused").train()
        if compiled:
            torch._dynamo.reset()
            model.layers[0].compile(fullgraph=True, backend="aot_eager")
        hidden, _ = model(two_streams(), model.empty_memory(SAMPLES, MEMORY))
        hidden.predictions.square().sum().backward()
        found.append([hidden.predictions, *(p.grad for p in model.layers.parameters())])
    for ours, eager in zip(*found, strict=True):
        assert torch.allclose(ours, eager, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    compiled_and_not()
