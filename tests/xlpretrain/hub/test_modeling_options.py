"""The modelling file of exports computes what our models compute, option by option.

OPTIONS must name every key of every model; a key that is added to a model without a line here fails the first test.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from xlpretrain import schema
from xlpretrain.models import MODELS
from xlpretrain.models.backbone import BackboneConfig, BackboneInput, OutputLayer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from xlpretrain.hub.remote_code import modeling_xlpretrain as exported

VOCAB, SAMPLES, TOKENS = 50, 3, 8
SMALL: dict[str, Any] = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24}
STACK: dict[str, list[Any]] = {
    "num_layers": [3],
    "num_layer_groups": [1, 2],
    "layers_per_group": [2],
    "num_heads": [4],
    "d_model": [24],
    "d_head": [6],
    "d_ff": [40],
    "d_embed": [8],
    "dropout": [0.5],  # exports compute as in evaluation
    "attention_dropout": [0.5],
    "activation": ["relu", "gelu", "gelu_tanh", "silu"],
    "feed_forward": [{"type": "glu"}],
    "norm": [{"type": "rms_norm"}],
    "pre_norm": [True],
    "layer_norm_eps": [1e-2],
    "init_std": [0.3],
}
RELATIVE: dict[str, list[Any]] = {
    "mem_len": [0, 5],
    "clamp_len": [3],
    "untie_r": [False, True],
    "initial_memory": ["zeros"],
    "positions": [{"type": "sinusoidal", "base": 50.0}],
}
ENCODER: dict[str, list[Any]] = {
    "mem_len": [],
    "max_positions": [16],
    "num_segments": [3],
    "positions": [{"type": "sinusoidal"}],
}
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "transformer_xl": {
        **STACK,
        **RELATIVE,
        "same_length": [True],
        "tie_embeddings": [False],
        "adaptive_cutoffs": [[10, 30]],
        "div_val": [2],
        "tie_projections": [[False, True, True]],
        "proj_init_std": [0.2],
    },
    "xlnet": STACK | RELATIVE,
    "albert": STACK | ENCODER,
    "bert": STACK | ENCODER,
}
NEEDS: dict[str, dict[str, Any]] = {
    "div_val": {"adaptive_cutoffs": [10, 30], "d_embed": 12},
    "tie_projections": {"adaptive_cutoffs": [10, 30], "d_embed": 12},
    "d_head": {"num_heads": 2},
    "num_layer_groups": {"num_layers": 4},
    "layers_per_group": {"num_layer_groups": 2},
}
CASES = [(name, key, value) for name, options in OPTIONS.items() for key, values in options.items() for value in values]


def test_every_key_of_every_model_has_a_case():
    for name, config in MODELS.items():
        assert config.model_fields.keys() - {"type"} == OPTIONS[name].keys(), name


def build(name: str, keys: dict[str, Any]) -> tuple[BackboneConfig, nn.Module, OutputLayer]:
    """A model of ours with random weights, norms and biases too."""
    config = schema.validate(MODELS[name], {"type": name, **SMALL, **keys}, "test")
    torch.manual_seed(0)
    backbone = config.build(VOCAB).eval()
    output = backbone.output_layer().eval()
    for parameter in [*backbone.parameters(), *output.parameters()]:
        nn.init.normal_(parameter, std=0.2)
    return config, backbone, output


@pytest.mark.parametrize(("name", "key", "value"), CASES, ids=[f"{n} {k}={v}" for n, k, v in CASES])
def test_the_exported_code_computes_the_same(name: str, key: str, value: Any):
    config, ours, output = build(name, {**NEEDS.get(key, {}), key: value})
    theirs = exported.Backbone(exported.XLPretrainConfig(vocab_size=VOCAB, **config.model_dump(mode="json"))).eval()
    theirs.load_state_dict(ours.state_dict())
    table = theirs.embedding.tokens if name in ("albert", "bert") else theirs.embedding
    head = exported.Output(theirs.config, table).eval()
    head.load_state_dict(output.state_dict())
    state, mems = ours.empty_memory(SAMPLES, config.mem_len), None
    for segment in range(3):
        tokens, segments = torch.randint(VOCAB, (SAMPLES, TOKENS)), torch.randint(2, (SAMPLES, TOKENS))
        past = torch.full((SAMPLES,), min(segment * TOKENS, config.mem_len))
        given = {} if name == "transformer_xl" else {"segments": segments}
        with torch.no_grad():
            hidden, state = ours(BackboneInput(tokens, past, **given), state)
            found, mems, *_ = theirs(tokens, mems=mems, **given)
            expected, logits = output.log_probs(hidden.tokens.flatten(0, 1)), head(found.flatten(0, 1))
        torch.testing.assert_close(found, hidden.tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits.log_softmax(-1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "key", "value"), CASES, ids=[f"{n} {k}={v}" for n, k, v in CASES])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.full)])
def test_autocast_computes_and_trains_ours_and_the_exported_code(dtype: torch.dtype, name: str, key: str, value: Any):
    config, ours, output = build(name, {**NEEDS.get(key, {}), key: value})
    described = exported.XLPretrainConfig(vocab_size=VOCAB, sentence_head=False, **config.model_dump(mode="json"))
    kind = exported.XLPretrainForCausalLM if name == "transformer_xl" else exported.XLPretrainForPreTraining
    theirs = kind(described).train()
    theirs.backbone.load_state_dict(ours.state_dict())
    theirs.head.output.load_state_dict(output.state_dict())
    tokens, state, mems = torch.randint(VOCAB, (SAMPLES, TOKENS)), ours.empty_memory(SAMPLES, config.mem_len), None
    given = {} if name == "transformer_xl" else {"segments": torch.zeros_like(tokens)}
    ours.train()
    with torch.autocast("cpu", dtype=dtype):
        for past in (0, min(TOKENS, config.mem_len)):  # the memory of one pass suits the next
            hidden, state = ours(BackboneInput(tokens, torch.full((SAMPLES,), past), **given), state)
            nll, _ = output(hidden.tokens.flatten(0, 1), tokens.flatten())
            answer = theirs(tokens, mems=mems, labels=tokens)
            mems = answer.mems
    for loss, model in ((nll.mean(), ours), (answer.loss, theirs)):
        loss.backward()
        assert bool(loss.isfinite())
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        assert sum(p.grad is not None for p in model.parameters()) > len(list(model.parameters())) / 2


@pytest.mark.parametrize("name", OPTIONS)
def test_autocast_is_close_to_fp32(name: str):
    config, ours, output = build(name, NEEDS["div_val"] | {"div_val": 2} if name == "transformer_xl" else {})
    tokens, past = torch.randint(VOCAB, (SAMPLES, TOKENS)), torch.zeros(SAMPLES, dtype=torch.int64)
    given = {} if name == "transformer_xl" else {"segments": torch.zeros_like(tokens)}
    losses, gradients = [], []
    for enabled in (False, True):
        ours.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            hidden, _ = ours(BackboneInput(tokens, past, **given), ours.empty_memory(SAMPLES, config.mem_len))
            nll, _ = output(hidden.tokens.flatten(0, 1), tokens.flatten())
        nll.mean().backward()
        losses.append(nll.detach())
        gradients.append(ours.layers[0].feed_forward.inner.weight.grad.clone())
    assert nll.dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.05)
    assert (gradients[1] - gradients[0]).norm() < 0.1 * gradients[0].norm()
