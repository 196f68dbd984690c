"""The feed-forwards against their formulas, written with plain matrix products; gradients too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xlpretrain import schema
from xlpretrain.models.parts.feed_forward import ACTIVATIONS, FEED_FORWARDS, FeedForward, FeedForwardSettings


def _build(kind: str, activation: str, *, dropout: float = 0.0) -> FeedForward:
    torch.manual_seed(0)
    settings = FeedForwardSettings(d_model=6, d_ff=10, activation=activation, dropout=dropout, inner_dropout=dropout)
    return schema.validate(FEED_FORWARDS[kind], {"type": kind}, "test").build(settings).double()


def _sigma(x: Tensor, activation: str) -> Tensor:
    """The activation by its formula."""
    match activation:
        case "relu":
            return x * (x > 0)
        case "gelu":
            return x / 2 * (1 + torch.erf(x / 2**0.5))
        case "gelu_tanh":
            return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
        case _:
            return x / (1 + torch.exp(-x))


def _formula(kind: str, activation: str, x: Tensor, w: dict[str, Tensor]) -> Tensor:
    if kind == "mlp":
        return _sigma(x @ w["inner.weight"].T + w["inner.bias"], activation) @ w["outer.weight"].T + w["outer.bias"]
    return (_sigma(x @ w["gate.weight"].T, activation) * (x @ w["inner.weight"].T)) @ w["outer.weight"].T


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["mlp", "glu"])
def test_values_and_gradients_are_those_of_the_formula(kind: str, activation: str) -> None:
    module, x = _build(kind, activation), torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*module.named_parameters(), strict=True)
    found, expected = module(x), _formula(kind, activation, x, dict(module.named_parameters()))
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(found)
    gradients = [torch.autograd.grad((y * towards).sum(), [x, *weights]) for y in (found, expected)]
    for name, ours, theirs in zip(("x", *names), *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_a_glu_of_two_thirds_of_the_width_costs_as_much_as_an_mlp() -> None:
    settings = {"d_model": 8, "activation": "silu", "dropout": 0.0, "inner_dropout": 0.0}
    mlp = FEED_FORWARDS["mlp"]().build(FeedForwardSettings(d_ff=24, **settings))
    glu = FEED_FORWARDS["glu"]().build(FeedForwardSettings(d_ff=16, **settings))
    assert mlp.flops_per_token() == glu.flops_per_token() == 6 * 2 * 8 * 24
    assert [name for name, _ in glu.named_parameters()] == ["gate.weight", "inner.weight", "outer.weight"]


@pytest.mark.parametrize("kind", ["mlp", "glu"])
def test_dropout_is_inside_and_outside_and_in_training_only(kind: str) -> None:
    module, x = _build(kind, "gelu", dropout=0.5), torch.randn(1, 200, 6, dtype=torch.float64)
    assert float((module.train()(x) == 0).double().mean()) == pytest.approx(0.5, abs=0.08)
    assert float((module.eval()(x) == 0).double().mean()) == 0.0
    inner = []
    module.outer.register_forward_hook(lambda _, given, __: inner.append(given[0]))
    module.train()(x)
    assert float((inner[0] == 0).double().mean()) == pytest.approx(0.5, abs=0.08)
