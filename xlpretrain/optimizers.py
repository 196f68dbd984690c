"""Optimizers: their configs, and which parameters decay.

An optimizer that is element-wise (AdamW) is right under every engine as it is: ZeRO hands it flat pieces of parameters.
One that looks at whole parameters is not, and must not be added here without code of its own for that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from xlpretrain.schema import Choice, Section


class OptimizerConfig(Section, ABC):
    """The keys every optimizer has."""

    type: str
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, which the schedule scales."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled decay of the matrices; parameters with fewer than two dimensions (biases, norms) do not decay."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global L2 norm of the gradient; 0 for none."""

    state_kinds: ClassVar[tuple[str, ...]]
    """Names of the fp32 tensors kept per parameter, beside the scalar `step`."""

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `parameters` (each once), with no state yet."""


class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019), torch's fused implementation."""

    type: Literal["adamw"] = "adamw"
    """Which optimizer this is."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""

    state_kinds: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        groups = decay_groups(parameters, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups for torch: those with two dimensions or more decay, the others do not. None is empty."""
    parameters = list(parameters)
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {"adamw": AdamWConfig}

AnyOptimizer = Annotated[OptimizerConfig, Choice(OPTIMIZERS)]
