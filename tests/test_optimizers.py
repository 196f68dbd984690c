from __future__ import annotations

import pytest
import torch
from torch import nn

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.optimizers import AdamWConfig, AnyOptimizer, decay_groups


class Holder(schema.Section):
    optimizer: AnyOptimizer = AdamWConfig()


def test_matrices_decay_and_vectors_do_not() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    optimizer = AdamWConfig(lr=0.1, weight_decay=0.5).build([vector, matrix])
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 3), 0.95))
    assert torch.equal(vector, torch.ones(3))


def test_no_group_is_empty() -> None:
    vector = nn.Parameter(torch.ones(3))
    assert decay_groups([vector], 0.1) == [{"params": [vector], "weight_decay": 0.0}]


def test_adamw_follows_its_equations() -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = AdamWConfig(lr=0.1, betas=(0.5, 0.75), eps=1e-3, weight_decay=0.2).build([weight])
    expected, first, second = 2.0, 0.0, 0.0
    for step, gradient in enumerate((3.0, -1.0, 0.5), start=1):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        first, second = 0.5 * first + 0.5 * gradient, 0.75 * second + 0.25 * gradient**2
        root = (second / (1 - 0.75**step)) ** 0.5 + 1e-3
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * first / (1 - 0.5**step) / root
        assert weight.item() == pytest.approx(expected, rel=1e-6)


def test_a_config_with_an_optimizer_reads_back_as_it_was_written() -> None:
    holder = schema.validate(Holder, {"optimizer": {"type": "adamw", "lr": 3e-4, "betas": [0.9, 0.999]}}, "test")
    assert isinstance(holder.optimizer, AdamWConfig)
    assert "betas: [0.9, 0.999]" in schema.dump(holder)
    assert schema.validate(Holder, holder.model_dump(mode="json"), "again") == holder


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"weight_decay": -0.1}, {"betas": [0.9, 1.0]}, {"grad_clip": -1.0}, {"type": "sgd"}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(wrong))}"):
        schema.validate(Holder, {"optimizer": wrong}, "test")
