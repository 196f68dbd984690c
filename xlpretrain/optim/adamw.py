"""AdamW by torch's fused kernel, with bias correction (as torch's) or without (as BERT's)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.optim.base import OptimizerConfig, ParameterView, TensorSlice
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
        defaults = self.model_dump(include={"lr", "betas", "eps", "bias_correction"})
        return AdamW(self.parameter_groups(parameters), defaults)


class AdamW(torch.optim.Optimizer):
    """w -= lr * (m / (sqrt(v) + eps) + weight_decay * w), with m and v the moving averages of g and g^2, from 0.

    With `bias_correction`, m and v are divided by 1 - beta^step: torch's AdamW. That one is not used because it refuses
    the meta device, on which kernels are counted.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            masters = [master for master in group["params"] if master.grad is not None]
            adam_update(
                masters,
                masters,
                self.state,
                group,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                bias_correction=group["bias_correction"],
                found_inf=found_inf,
            )


def adam_update(
    targets: Sequence[Tensor],
    masters: Sequence[Tensor],
    state: MutableMapping[Tensor, Any],
    group: dict[str, Any],
    *,
    lr: float,
    weight_decay: float = 0.0,
    bias_correction: bool = False,
    found_inf: Float[Tensor, ""] | None = None,
) -> None:
    """Update the moments of `masters` with their gradients and apply one Adam step to `targets`, of the same shapes.

    One call of torch's fused kernel, without a device synchronization. `group` has `betas` and `eps`. If `found_inf` is
    1, nothing changes; otherwise it must be 0.
    """
    count_steps(masters, state, made=None if found_inf is None else 1 - found_inf)
    apply_adam(
        targets,
        masters,
        state,
        group,
        lr=lr,
        weight_decay=weight_decay,
        bias_correction=bias_correction,
        found_inf=found_inf,
    )


def count_steps(
    masters: Sequence[Tensor], state: MutableMapping[Tensor, Any], *, made: Float[Tensor, ""] | None = None
) -> None:
    """Add `made` (0 or 1; default: 1) to the masters' step counters. Masters without state get one."""
    for master in masters:
        if not state[master]:
            state[master] = {"step": master.new_zeros(()), "exp_avg": torch.zeros_like(master)}
            state[master]["exp_avg_sq"] = torch.zeros_like(master)
    steps = [state[master]["step"] for master in masters]
    if steps:
        torch._foreach_add_(steps, 1 if made is None else [made] * len(steps))


def apply_adam(
    targets: Sequence[Tensor],
    masters: Sequence[Tensor],
    state: MutableMapping[Tensor, Any],
    group: dict[str, Any],
    *,
    lr: float,
    weight_decay: float = 0.0,
    bias_correction: bool = False,
    found_inf: Float[Tensor, ""] | None = None,
    slices: Sequence[TensorSlice] | None = None,
) -> None:
    """Do the work of `adam_update` on steps that are counted already.

    slices: the part of each master that the target stands for (default: all of it); a master may have several.
    """
    if not targets:
        return

    def parts(tensors: Iterable[Tensor]) -> list[Tensor]:
        return list(tensors) if slices is None else [s.of(t) for s, t in zip(slices, tensors, strict=True)]

    # The kernel divides by 1 - beta^step; with step = inf, that is 1.
    infinity = None if bias_correction else targets[0].new_full((), math.inf)
    torch._fused_adamw_(
        list(targets),
        parts(master.grad for master in masters if master.grad is not None),
        parts(state[master]["exp_avg"] for master in masters),
        parts(state[master]["exp_avg_sq"] for master in masters),
        [],
        [state[master]["step"] if infinity is None else infinity for master in masters],
        lr=lr,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=weight_decay,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        found_inf=found_inf,
    )
