"""AdamW, with bias correction (torch's own) or without (BERT's)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adamw import adamw

from xlpretrain.optim.base import OptimizerConfig, ParameterView
from xlpretrain.optim.groups import StateKeys

Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019), torch's fused implementation.

    For the optimizer of BERT, XLNet and ALBERT ("AdamWeightDecay"), set `bias_correction: false`, `eps: 1.0e-6` and
    `betas: [0.9, 0.999]`.
    """

    type: Literal["adamw"] = "adamw"
    """Kind of optimizer."""
    betas: Betas = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the square root of the second moment."""
    bias_correction: bool = True
    """Divide the moments by 1 - beta^step, to correct for their start at 0."""

    parameter_view: ClassVar[ParameterView] = "elements"

    def state_keys(self, name: str, shape: Sequence[int]) -> StateKeys:
        """First and second moment, for every parameter."""
        return ("exp_avg", "exp_avg_sq")

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        groups = self.parameter_groups(parameters)
        if self.bias_correction:
            return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
        return UncorrectedAdamW(groups, {"lr": self.lr, "betas": self.betas, "eps": self.eps})


class UncorrectedAdamW(torch.optim.Optimizer):
    """w -= lr * (m / (sqrt(v) + eps) + weight_decay * w), with m and v the moving averages of g and g^2, from 0."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            masters = [master for master in group["params"] if master.grad is not None]
            adam_update(masters, masters, self.state, group, lr=group["lr"], weight_decay=group["weight_decay"])


def adam_update(
    targets: Sequence[Tensor],
    masters: Sequence[Tensor],
    state: MutableMapping[Tensor, Any],
    group: dict[str, Any],
    *,
    lr: float,
    weight_decay: float = 0.0,
    bias_correction: bool = False,
) -> None:
    """Update the moments of `masters` with their gradients and apply one Adam step to `targets`, of the same shapes.

    One call of torch's fused kernel, without a device synchronization. `group` has `betas` and `eps`.
    """
    if not masters:
        return
    for master in masters:
        if not state[master]:
            state[master] = {"step": master.new_zeros(()), "exp_avg": torch.zeros_like(master)}
            state[master]["exp_avg_sq"] = torch.zeros_like(master)
    states = [state[master] for master in masters]
    steps = [s["step"] for s in states]
    if not bias_correction:
        torch._foreach_add_(steps, 1)
        # The kernel divides by 1 - beta^step; with step = inf, that is 1.
        steps = [steps[0].new_full((), math.inf)] * len(steps)
    adamw(
        list(targets),
        [master.grad for master in masters if master.grad is not None],
        [s["exp_avg"] for s in states],
        [s["exp_avg_sq"] for s in states],
        [],
        steps,
        fused=True,
        amsgrad=False,
        maximize=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        lr=lr,
        weight_decay=weight_decay,
    )
