"""An optimizer of two rules with different state: momentum for most matrices, Adam for everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from xlpretrain.optim import OptimizerConfig
from xlpretrain.optim.adamw import adam_update
from xlpretrain.optim.groups import GroupConfig


class TwoRules(OptimizerConfig):
    type: Literal["two_rules"] = "two_rules"
    parameter_view = "elements"

    def state_keys(self, name: str, shape: Sequence[int]) -> tuple[str, ...]:
        return ("momentum",) if len(shape) >= 2 and "embedding" not in name else ("exp_avg", "exp_avg_sq")

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return _Steps(self.parameter_groups(parameters), {"lr": self.lr, "betas": (0.9, 0.99), "eps": 1e-6})


class _Steps(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            masters = [master for master in group["params"] if master.grad is not None]
            if group["state_keys"] != ("momentum",):
                adam_update(masters, masters, self.state, group, lr=group["lr"], weight_decay=group["weight_decay"])
                continue
            for master in masters:
                momentum = self.state[master]["momentum"].mul_(0.9).add_(master.grad)
                master.mul_(1 - group["lr"] * group["weight_decay"]).sub_(momentum, alpha=10 * group["lr"])


class OneGroup(TwoRules):
    """It lays parameters with different state into one group."""

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(parameters.values()), lr=self.lr)


TWO_RULES = TwoRules(
    grad_clip=0.5,
    groups=(
        GroupConfig(match="backbone.embedding.*", lr_factor=0.5, weight_decay=0.0),
        GroupConfig(match="*.bias", lr_factor=2.0),
        GroupConfig(match="head.*", weight_decay=0.3),
    ),
)
"""For the tiny model: an embedding, biases, the head's matrix, and of the rest a matrix and vectors: five groups."""
