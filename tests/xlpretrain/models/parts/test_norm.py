"""The norms against their formulas, in every precision; and none of them decays."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.models import MODELS
from xlpretrain.models.parts.norm import NORMS
from xlpretrain.optim import AdamWConfig

EPS = 1e-3


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_values_and_gradients_are_those_of_the_formula(kind: str) -> None:
    torch.manual_seed(0)
    module = NORMS[kind]().build(6, eps=EPS).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    centred = x - x.mean(-1, keepdim=True) if kind == "layer_norm" else x
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * module.weight
    expected = expected + module.bias if kind == "layer_norm" else expected
    torch.testing.assert_close(module(x), expected)
    towards = torch.randn_like(x)
    given = [x, *module.parameters()]
    for ours, theirs in zip(
        *(torch.autograd.grad((y * towards).sum(), given) for y in (module(x), expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("autocast", [False, True], ids=["model of bf16", "autocast"])
def test_rms_norm_in_bf16_is_that_of_fp32_rounded(autocast: bool) -> None:
    torch.manual_seed(0)
    module, x = NORMS["rms_norm"]().build(64, eps=EPS), torch.randn(10, 64).bfloat16() * 100
    expected = module(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = (module if autocast else module.bfloat16())(x)
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=0)


def test_norms_begin_with_weight_one_and_do_not_decay() -> None:
    sizes = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 8}
    model = MODELS["bert"](**sizes, norm=NORMS["rms_norm"]()).build(20)
    named = {name: p for name, p in model.named_parameters() if "norm" in name}
    assert len(named) == 3
    assert all(torch.equal(p, torch.ones(8)) for p in named.values())
    groups = AdamWConfig(weight_decay=0.1).build(dict(model.named_parameters())).param_groups
    (still,) = [group["params"] for group in groups if group["weight_decay"] == 0]
    assert all(any(p is other for other in still) for p in named.values())
