"""Which implementation of attention an engine gets, and the check of a device before fused attention is used."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from xlpretrain.engine import PlainConfig
from xlpretrain.errors import ConfigError
from xlpretrain.extras import is_missing
from xlpretrain.models import BertConfig, TransformerXLConfig
from xlpretrain.models.kernels.fused.choice import choose_attention, fault, why_not
from xlpretrain.models.kernels.fused.example import Kind
from xlpretrain.models.kernels.fused.tiles import INTERPRETED, Tiles, use_tiles
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives import CausalLM
from xlpretrain.optim import AdamWConfig

CPU = torch.device("cpu")
SIZES = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8}
needs_triton = pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed")
unused_numbers = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")


def _decoder() -> torch.nn.Module:
    return TransformerXLConfig(**SIZES, mem_len=4).build(20)


@needs_triton
def test_a_cpu_has_no_fused_attention(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "NVIDIA GPU" in str(why_not(CPU))
    with pytest.raises(ConfigError, match="attention  fused: it needs an NVIDIA GPU, and this runs on cpu; use null"):
        choose_attention(_decoder(), "fused", device=CPU, dtype=torch.float32)


def test_without_triton_the_reason_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in str(why_not(CPU))


def test_bert_has_no_relative_attention():
    with pytest.raises(ConfigError, match="only relative attention"):
        choose_attention(BertConfig(**SIZES).build(20), "fused", device=CPU, dtype=torch.float32)


def test_on_a_cpu_nothing_is_chosen_unless_asked_for():
    model = _decoder()
    assert choose_attention(model, None, device=CPU, dtype=torch.float32) is None
    assert model.layers[0].attention.implementation is None
    assert choose_attention(model, "plain", device=CPU, dtype=torch.float32) == "plain"
    assert model.layers[0].attention.implementation == "plain"


@pytest.mark.full
@needs_triton
@unused_numbers
@pytest.mark.parametrize("tuned", [False, True])
def test_an_engine_records_the_implementation_and_tiles_that_were_asked_for(group, tuned):
    objective, backbone = CausalLM(seq_len=4), _decoder()
    engine = PlainConfig(precision="fp32", attention="fused", autotune_attention=tuned).build(
        PretrainingModel(backbone, objective.head(backbone)),
        AdamWConfig(lr=1e-2),
        num_micro_batches=1,
        weights=objective.weights,
        device=CPU,
    )
    assert engine.layout["attention"] == "fused"
    assert str(engine.layout.get("attention_tiles", "")).startswith("scores by position") is tuned
    assert backbone.fused


@pytest.mark.full
@needs_triton
@unused_numbers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tiles", [INTERPRETED, Tiles(INTERPRETED.memory, None)])
def test_a_device_that_computes_the_right_thing_has_no_fault(tiles, causal, dtype):
    use_tiles(CPU, dtype, 8, tiles)
    assert fault(CPU, Kind(dtype, 8, 0.1, causal), tiles) is None
    use_tiles(CPU, dtype, 8, None)


@pytest.mark.full
@needs_triton
@unused_numbers
def test_a_device_that_computes_something_else_has_a_fault(monkeypatch):
    import triton.language as tl

    from xlpretrain.models.kernels.fused.programs import parts

    monkeypatch.setattr(parts, "LOG2E", tl.constexpr(1.5))
    assert "differs from the formula by" in str(fault(CPU, Kind(torch.float32, 16, 0.0, True), INTERPRETED))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"attention": "sdpa"}, "needs engine.attention fused, got sdpa"),
        ({}, "needs engine.attention fused, got null"),
        ({"attention": "fused", "deterministic": True}, "must be false if engine.deterministic is true"),
    ],
)
def test_tiles_are_timed_only_for_fused_attention_that_need_not_be_deterministic(keys, problem):
    ((key, text),) = PlainConfig(autotune_attention=True, **keys).problems()
    assert key == "autotune_attention"
    assert problem in text
