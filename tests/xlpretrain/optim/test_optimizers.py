"""Optimizers take the steps that their papers define, on whole parameters and on slices of them.

Modules: adamw.py, lamb.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference_lamb import Gate, ReferenceLamb
from torch import nn

from xlpretrain import schema
from xlpretrain.engine.state_shards import fused_tensors
from xlpretrain.errors import ConfigError
from xlpretrain.optim import AdamWConfig, AnyOptimizer, LambConfig
from xlpretrain.optim.base import LayerwiseOptimizer, TensorSlice


class Holder(schema.Section):
    optimizer: AnyOptimizer = AdamWConfig()


def _whole(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Each parameter is a tensor, all of it here."""
    assert isinstance(optimizer, LayerwiseOptimizer)
    segments = {p: [TensorSlice(number, 0, p.numel())] for number, p in enumerate(parameters)}
    optimizer.set_parameter_slices(segments, num_tensors=len(parameters), group=None)
    return optimizer


def _named(parameters: list[nn.Parameter]) -> dict[str, nn.Parameter]:
    return {f"p{number}": parameter for number, parameter in enumerate(parameters)}


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [
        torch.randn(shape, generator=generator) * scale for shape, scale in [((5, 7), 0.1), ((3, 4), 9), ((6,), 1)]
    ]
    return [nn.Parameter(value) for value in [*values, torch.zeros(2, 3)]]


def test_matrices_decay_and_vectors_do_not() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    optimizer = AdamWConfig(lr=0.1, weight_decay=0.5).build({"bias": vector, "weight": matrix})
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 3), 0.95))
    assert torch.equal(vector, torch.ones(3))


@pytest.mark.parametrize("corrected", [True, False])
def test_adamw_follows_its_equations(corrected: bool) -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    config = AdamWConfig(lr=0.1, betas=(0.5, 0.75), eps=1e-3, weight_decay=0.2, bias_correction=corrected)
    optimizer = config.build({"weight": weight})
    expected, first, second = 2.0, 0.0, 0.0
    for step, gradient in enumerate((3.0, -1.0, 0.5), start=1):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        first, second = 0.5 * first + 0.5 * gradient, 0.75 * second + 0.25 * gradient**2
        m, v = (first / (1 - 0.5**step), second / (1 - 0.75**step)) if corrected else (first, second)
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * m / (v**0.5 + 1e-3)
        assert weight.item() == pytest.approx(expected, rel=1e-6)
        assert optimizer.state[weight]["step"] == step


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias_correction": True},
        {"weight_decay": 0.0, "betas": (0.5, 0.75)},
        {"bias_correction": True, "min_trust_ratio": 0.5, "max_trust_ratio": 2.0},
    ],
)
def test_lamb_follows_its_equations(options: dict[str, Any]) -> None:
    ours, reference = _parameters(), _parameters()
    optimizer = _whole(LambConfig(lr=0.1, **options).build(_named(ours)), ours)
    bounds = (options.pop("min_trust_ratio", 0.0), options.pop("max_trust_ratio", math.inf))
    expected = ReferenceLamb(reference, bounds=bounds, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        gradients = [torch.randn(p.shape, generator=generator) for p in ours]
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        expected.step(gradients, lr=0.1)
        for found, wanted in zip(ours, reference, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_lamb_sees_three_tensors_in_a_fused_weight() -> None:
    weight = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [9], [0.1]] * 3)
    fused, separate, taken_for_one = Gate(weight, fused=True), Gate(weight, fused=False), Gate(weight, fused=True)
    taken_for_one.weights[0].num_fused = 1
    for gate in (fused, separate, taken_for_one):
        parameters = list(gate.parameters())
        optimizer = LambConfig(lr=0.1).build(_named(parameters))
        segments = {
            p: [TensorSlice(s.first + i, i * s.size, s.size) for i in range(s.count)]
            for p, s in zip(parameters, fused_tensors(gate).values(), strict=True)
        }
        optimizer.set_parameter_slices(segments, num_tensors=4, group=None)
        gate(torch.randn(5, 4, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        optimizer.step()
    together = torch.cat(list(separate.weights))
    assert torch.allclose(fused.weights[0], together, rtol=1e-6)
    assert not torch.allclose(taken_for_one.weights[0], together, rtol=1e-3)


def test_lamb_never_looks_at_padding() -> None:
    matrix = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    flat = nn.Parameter(torch.cat([matrix.detach().view(-1), torch.tensor([math.nan, math.inf])]))
    optimizer = LambConfig(lr=0.1).build(_named([matrix]))  # as under ZeRO: flat masters take the parameters' place
    _whole(optimizer, [matrix])
    matrix.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    optimizer.param_groups[0]["params"] = [flat]
    optimizer.set_parameter_slices({flat: [TensorSlice(0, 0, 12)]}, num_tensors=1, group=None)
    flat.grad = torch.cat([matrix.grad.view(-1), torch.tensor([math.nan, 5.0])])
    optimizer.step()
    assert torch.equal(flat[:12].view(4, 3), matrix)
    assert flat[12].isnan() and flat[13].isinf()


def test_lamb_does_not_step_before_it_knows_where_tensors_lie() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LambConfig().build(_named([weight]))
    weight.grad = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="set_parameter_slices"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize(
    "data",
    [
        {"type": "adamw", "lr": 3e-4, "betas": [0.9, 0.999], "bias_correction": False},
        {"type": "lamb", "betas": [0.9, 0.999], "max_trust_ratio": 10.0},
    ],
)
def test_a_config_with_an_optimizer_reads_back_as_it_was_written(data: dict[str, Any]) -> None:
    holder = schema.validate(Holder, {"optimizer": data}, "test")
    assert holder.optimizer.type == data["type"]
    assert "betas: [0.9, 0.999]" in schema.dump(holder)
    assert schema.validate(Holder, holder.model_dump(mode="json"), "again") == holder


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"weight_decay": -0.1},
        {"betas": [0.9, 1.0]},
        {"grad_clip": -1.0},
        {"type": "sgd"},
        {"max_trust_ratio": 0.0, "type": "lamb"},
        {"min_trust_ratio": 2.0, "max_trust_ratio": 1.0, "type": "lamb"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(wrong))}"):
        schema.validate(Holder, {"optimizer": wrong}, "test")
