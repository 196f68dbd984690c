"""Models whose layers are computed as a whole, against the same of parts with the plain formula in float64.

Modules: parts.py, whole.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.cases import case
from benchmarks.gpu.kernel_work import attention_work
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain.errors import ConfigError
from xlpretrain.extras import is_missing
from xlpretrain.models import BertConfig, TransformerXLConfig, XLNetConfig
from xlpretrain.models.attention import Attention
from xlpretrain.models.backbone import Backbone, BackboneConfig, BackboneInput
from xlpretrain.models.kernels.fused.layer import choice
from xlpretrain.models.kernels.fused.layer.choice import Kind, choose_whole_layers, fault
from xlpretrain.models.parts.norm import RMSNormConfig
from xlpretrain.models.stack import Layer
from xlpretrain.planning.device_work import kept_bytes

SAMPLES, TOKENS, MEMORY, VOCAB = 2, 7, 3, 20
TINY: dict[str, Any] = {
    **{"num_layers": 2, "d_model": 12, "num_heads": 2, "d_ff": 16, "mem_len": MEMORY},
    **{"dropout": 0.0, "attention_dropout": 0.0},
}
OPERATIONS = {"transformer_xl": 45, "xlnet": 56}
"""Forward and backward, in the second micro-batch of a step, with the kernels inside of the attention's operators."""
KEPT = {"transformer_xl": 34.5, "xlnet": 37.0}
"""Bytes kept for the backward pass, in bf16 with dropout, per new token and layer, in units of d_model bytes."""
needs_triton = pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def build(config: BackboneConfig, *, whole: bool) -> Backbone:
    torch.manual_seed(0)
    model = config.build(VOCAB)
    for module in model.modules():
        if isinstance(module, Attention):
            module.implementation = "fused" if whole else "plain"
        if isinstance(module, Layer):
            module.whole = whole
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm) and module.bias is not None:
            torch.nn.init.normal_(module.bias, std=0.3)
    return model


def inputs(*, two_streams: bool) -> BackboneInput:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (SAMPLES, TOKENS), generator=generator)
    if not two_streams:
        return BackboneInput(tokens, torch.tensor([2, MEMORY]))
    order = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(SAMPLES)])
    return BackboneInput(
        tokens,
        torch.tensor([2, MEMORY]),
        segments=torch.randint(2, (SAMPLES, TOKENS), generator=generator),
        perm_rank=order,
        target_positions=order[:, :3],
        reversed=torch.tensor([False, True]),
    )


def everything(model: Backbone, given: BackboneInput) -> list[torch.Tensor]:
    """Hidden states of two steps, and the gradients of all parameters."""
    mems, found = model.empty_memory(SAMPLES, MEMORY), []
    for _ in range(2):
        hidden, mems = model(given, mems)
        found += [states for states in (hidden.tokens, hidden.predictions) if states is not None]
    sum((states * torch.linspace(-1, 1, states.shape[-1])).square().sum() for states in found).backward()
    return [*found, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@needs_triton
@pytest.mark.parametrize(
    "config",
    [
        TransformerXLConfig(**{**TINY, "num_layers": 1}),
        pytest.param(TransformerXLConfig(**TINY, untie_r=True, norm=RMSNormConfig()), marks=pytest.mark.full),
        pytest.param(TransformerXLConfig(**TINY, num_layer_groups=1), marks=pytest.mark.full),
        pytest.param(XLNetConfig(**TINY), marks=pytest.mark.full),
        pytest.param(XLNetConfig(**TINY, untie_r=False, activation="relu"), marks=pytest.mark.full),
    ],
    ids=["one layer", "rms", "shared", "xlnet", "xlnet, relu"],
)
def test_output_and_gradients_are_those_of_the_parts(config: BackboneConfig):
    given = inputs(two_streams=config.type == "xlnet")
    found, right = everything(build(config, whole=True), given), everything(build(config, whole=False).double(), given)
    for ours, exact in zip(found, right, strict=True):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1e-2)


@needs_triton
@pytest.mark.full
@pytest.mark.parametrize("kind", [TransformerXLConfig, XLNetConfig])
def test_checkpointed_layers_drop_the_same_and_give_the_same_bits(kind: type[BackboneConfig]):
    config = kind(**{**TINY, "dropout": 0.4, "attention_dropout": 0.3})
    found = []
    for checkpointing in (False, True):
        model = build(config, whole=True).train()
        model.activation_checkpointing = checkpointing
        torch.manual_seed(3)
        found.append(everything(model, inputs(two_streams=config.type == "xlnet")))
    for with_it, without in zip(*found, strict=True):
        assert torch.equal(with_it, without)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_layer_stays_within_its_operations(name: str):
    of = case(name, "base", rows=32, precision="bf16", threads=1)
    assert attention_work(of, "fused", whole=True).operations <= OPERATIONS[name]


@pytest.mark.parametrize("name", KEPT)
def test_a_layer_stays_within_its_kept_bytes(name: str):
    of, found = case(name, "base", rows=32, precision="bf16", threads=1), []
    for layers in (3, 2):
        with torch.device("meta"):
            model, objective = pretraining_model(replace(of, num_layers=layers))
        model = model.to(torch.bfloat16).train()
        for module in model.modules():
            if isinstance(module, Attention):
                module.implementation = "fused"
            if isinstance(module, Layer):
                module.whole = True
        given = make_batch(of, objective).to(torch.device("meta")).inputs
        mems = model.backbone.empty_memory(of.rows, of.mem_len)
        found.append(kept_bytes(lambda: model.backbone(given, mems), without=[*model.parameters()]))  # noqa: B023
    assert (found[0] - found[1]) / (of.rows * of.seq_len * of.d_model) <= KEPT[name]


@needs_triton
@pytest.mark.full
@pytest.mark.parametrize("causal", [True, False])
def test_a_device_that_computes_the_right_thing_has_no_fault(causal: bool):
    assert fault(torch.device("cpu"), Kind(torch.float32, 8, "gelu", True, causal)) is None


@needs_triton
def test_a_fault_is_an_error_before_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choice, "fault", lambda *_: "a layer differs")
    model = TransformerXLConfig(**TINY).build(VOCAB)
    with pytest.raises(ConfigError, match="attention  fused: a layer differs; use null"):
        choose_whole_layers(model, device=torch.device("cpu"), dtype=torch.float32)


def test_layers_of_other_kinds_are_left_as_they_are():
    of_others = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8}
    for config in (BertConfig(**of_others), TransformerXLConfig(**{**TINY, "pre_norm": True})):
        model = config.build(VOCAB)
        choose_whole_layers(model, device=torch.device("cpu"), dtype=torch.float32)
        assert not any(layer.whole for layer in model.layers)
