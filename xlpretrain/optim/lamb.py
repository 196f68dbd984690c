"""LAMB (You et al., "Large batch optimization for deep learning", 2020, arXiv:1904.00962, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.optim.adamw import Betas, apply_adam, count_steps
from xlpretrain.optim.base import LayerwiseOptimizer, OptimizerConfig, ParameterView, TensorSlice
from xlpretrain.optim.groups import StateKeys
from xlpretrain.schema import Problem

_ROW = 1024
"""Elements of a row of steps: few of them are padding, and few ratios are read."""


class LambConfig(OptimizerConfig):
    """Adam with each tensor's step scaled to the norm of its weights. The defaults are ALBERT's.

    Biases and norms (fewer than two dimensions) neither decay nor are scaled.
    """

    type: Literal["lamb"] = "lamb"
    """Kind of optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1.76e-3
    """Peak learning rate, which the schedule scales; the default is for batches of 4096 samples."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the square root of the second moment."""
    bias_correction: bool = False
    """Divide the moments by 1 - beta^step, to correct for their start at 0, as in the paper; ALBERT does not."""
    min_trust_ratio: Annotated[float, Field(ge=0)] | None = None
    """Lower bound of the trust ratio |weights| / |step|, which multiplies the step (null: no bound)."""
    max_trust_ratio: Annotated[float, Field(gt=0)] | None = None
    """Upper bound of the trust ratio (null: no bound); other implementations often use 10."""

    parameter_view: ClassVar[ParameterView] = "slices"

    def state_keys(self, name: str, shape: Sequence[int]) -> StateKeys:
        """First and second moment, for every parameter."""
        return ("exp_avg", "exp_avg_sq")

    def problems(self) -> Iterator[Problem]:
        """Yield a problem if the lower bound is above the upper one."""
        low, high = self.min_trust_ratio, self.max_trust_ratio
        if low is not None and high is not None and low > high:
            yield "min_trust_ratio", f"must not be above max_trust_ratio ({high:g}), got {low:g}"

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        groups = self.parameter_groups(parameters)
        defaults = self.model_dump(include={"lr", "betas", "eps", "bias_correction"})
        low, high = self.min_trust_ratio, self.max_trust_ratio
        return Lamb(groups, {**defaults, "bounds": (low or 0.0, math.inf if high is None else high)})


class Lamb(LayerwiseOptimizer):
    """LAMB on masters. Each call all-reduces two numbers per tensor and allocates a temporary of the masters' size."""

    _step_supports_amp_scaling = True

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]):
        super().__init__(groups, defaults)
        for group in self.param_groups:
            group["scaled"] = group["params"][0].ndim >= 2  # decided now: ZeRO's masters are flat
        self._slices: Mapping[Tensor, Sequence[TensorSlice]] | None = None
        self._num_tensors = 0
        self._process_group: dist.ProcessGroup | None = None
        self._numbers: dict[Tensor, Tensor] = {}
        self._slice_of_row: dict[tuple[Tensor, ...], Tensor] = {}

    def set_parameter_slices(
        self, slices: Mapping[Tensor, Sequence[TensorSlice]], *, num_tensors: int, group: dist.ProcessGroup | None
    ) -> None:
        self._slices, self._num_tensors, self._process_group = slices, num_tensors, group
        self._slice_of_row = {}
        # Copied to the device once: a copy in each step would synchronize with it.
        self._numbers = {
            m: torch.tensor([s.tensor for s in of], device=m.device, dtype=torch.long) for m, of in slices.items()
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights. DeepSpeed calls this once per master, the plain engine once. Every rank must call it."""
        if self._slices is None:
            raise RuntimeError("LAMB has no parameter slices: call set_parameter_slices() before the first step")
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        made = None if found_inf is None else 1 - found_inf
        given = [[master for master in group["params"] if master.grad is not None] for group in self.param_groups]
        count_steps([master for masters in given for master in masters], self.state, made=made)
        for group, masters in zip(self.param_groups, given, strict=True):
            rule = {"bias_correction": group["bias_correction"], "found_inf": found_inf}
            if not masters:
                continue
            if not group["scaled"]:
                apply_adam(masters, masters, self.state, group, lr=group["lr"], **rule)
            elif masters[0].device.type == "cpu" and made is None:
                steps = [torch.zeros_like(master) for master in masters]
                apply_adam(steps, masters, self.state, group, lr=-1.0, **rule)
                if group["weight_decay"]:
                    torch._foreach_add_(steps, masters, alpha=group["weight_decay"])
                self._scale_and_add(masters, steps, group)
            else:
                self._update_in_rows(masters, group, rule, made)

    def _scale_and_add(self, masters: Sequence[Tensor], steps: Sequence[Tensor], group: dict[str, Any]) -> None:
        """w -= lr * |w| / |step| * step, for each tensor; padding is not changed."""
        assert self._slices is not None
        cuts = [(index, s) for index, master in enumerate(masters) for s in self._slices[master]]
        weights = [s.of(masters[index]) for index, s in cuts]
        updates = [s.of(steps[index]) for index, s in cuts]
        ratios = self._trust_ratios(weights, updates, masters, group["bounds"])
        if weights:
            torch._foreach_addcmul_(weights, updates, ratios.float().unbind(), value=-group["lr"])

    def _update_in_rows(
        self, masters: Sequence[Tensor], group: dict[str, Any], rule: Mapping[str, Any], made: Tensor | None
    ) -> None:
        """The whole update for a device, by a number of kernels that does not grow with the number of tensors.

        Each slice's step fills rows of its own in one matrix, so one product scales all steps by their trust ratios;
        torch has no kernel that scales each tensor of a list by another number on the device.
        """
        assert self._slices is not None
        owners = [master for master in masters for _ in self._slices[master]]
        slices = [s for master in masters for s in self._slices[master]]
        counts = [-(-s.size // _ROW) for s in slices]
        rows = torch.zeros(sum(counts), _ROW, device=masters[0].device)
        weights = [s.of(owner) for owner, s in zip(owners, slices, strict=True)]
        parts = torch.split(rows, counts) if counts else ()
        updates = [part.view(-1)[: s.size] for part, s in zip(parts, slices, strict=True)]
        apply_adam(updates, owners, self.state, group, lr=-1.0, slices=slices, **rule)
        if weights and group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        ratios = self._trust_ratios(weights, updates, masters, group["bounds"], one=made)
        if weights:
            ratios = ratios if made is None else ratios * made
            rows.mul_(ratios.float()[self._numbers_of_rows(masters, counts), None])
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _numbers_of_rows(self, masters: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """For each row, the number of the slice that it belongs to, among the slices of these masters."""
        if (key := tuple(masters)) not in self._slice_of_row:
            numbers = torch.empty(sum(counts), dtype=torch.long, device=masters[0].device)
            for number, rows in enumerate(torch.split(numbers, list(counts))):
                rows.fill_(number)  # once, and without a copy from the host, which would wait for the device
            self._slice_of_row[key] = numbers
        return self._slice_of_row[key]

    def _trust_ratios(
        self,
        weights: list[Tensor],
        updates: list[Tensor],
        masters: Sequence[Tensor],
        bounds: tuple[float, float],
        *,
        one: Tensor | None = None,
    ) -> Float[Tensor, " S"]:
        """Bounded |w| / |step| of the tensor to which each slice belongs, in float64; `one` (1) where a norm is 0."""
        norms = masters[0].new_empty(2, 0, dtype=torch.float64)
        if weights:
            parts = [torch._foreach_norm(slices, dtype=torch.float64) for slices in (weights, updates)]
            norms = torch.stack([*parts[0], *parts[1]]).view(2, -1)
        if self._process_group is not None:
            numbers = torch.cat([self._numbers[master] for master in masters])
            squares = norms.new_zeros(2, self._num_tensors)
            squares[:, numbers] = norms.square()
            dist.all_reduce(squares, group=self._process_group)  # also on ranks without slices of these masters
            norms = squares[:, numbers].sqrt()
        weight, update = norms
        ratios = weight / update
        if bounds != (0.0, math.inf):
            ratios = ratios.clamp(*bounds)
        return torch.where(norms.all(dim=0), ratios, 1.0 if one is None else one)
