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

from xlpretrain.optim.adamw import Betas, adam_update
from xlpretrain.optim.base import LayerwiseOptimizer, OptimizerConfig, ParameterView, TensorSlice
from xlpretrain.optim.groups import StateKeys
from xlpretrain.schema import Problem


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

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]):
        super().__init__(groups, defaults)
        for group in self.param_groups:
            group["scaled"] = group["params"][0].ndim >= 2  # decided now: ZeRO's masters are flat
        self._slices: Mapping[Tensor, Sequence[TensorSlice]] | None = None
        self._num_tensors = 0
        self._process_group: dist.ProcessGroup | None = None
        self._numbers: dict[Tensor, Tensor] = {}

    def set_parameter_slices(
        self, slices: Mapping[Tensor, Sequence[TensorSlice]], *, num_tensors: int, group: dist.ProcessGroup | None
    ) -> None:
        self._slices, self._num_tensors, self._process_group = slices, num_tensors, group
        # Copied to the device once: a copy in each step would synchronize with it.
        self._numbers = {
            m: torch.tensor([s.tensor for s in of], device=m.device, dtype=torch.long) for m, of in slices.items()
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights. DeepSpeed calls this once per master, the plain engine once. Every rank must call it."""
        if self._slices is None:
            raise RuntimeError("LAMB has no parameter slices: call set_parameter_slices() before the first step")
        for group in self.param_groups:
            masters = [master for master in group["params"] if master.grad is not None]
            correct = group["bias_correction"]
            if not masters:
                continue
            if not group["scaled"]:
                adam_update(masters, masters, self.state, group, lr=group["lr"], bias_correction=correct)
                continue
            steps = [torch.zeros_like(master) for master in masters]
            adam_update(steps, masters, self.state, group, lr=-1.0, bias_correction=correct)
            if group["weight_decay"]:
                torch._foreach_add_(steps, masters, alpha=group["weight_decay"])
            self._apply(masters, steps, group)

    def _apply(self, masters: Sequence[Tensor], steps: Sequence[Tensor], group: dict[str, Any]) -> None:
        """w -= lr * |w| / |step| * step, for each tensor; padding is not changed."""
        assert self._slices is not None
        cuts = [(index, s) for index, master in enumerate(masters) for s in self._slices[master]]
        weights = [masters[index].view(-1)[s.offset : s.offset + s.size] for index, s in cuts]
        updates = [steps[index].view(-1)[s.offset : s.offset + s.size] for index, s in cuts]
        numbers = torch.cat([self._numbers[master] for master in masters])
        ratios = self._trust_ratios(weights, updates, numbers, group["bounds"])
        if weights:
            torch._foreach_addcmul_(weights, updates, ratios.float().unbind(), value=-group["lr"])

    def _trust_ratios(
        self, weights: list[Tensor], updates: list[Tensor], numbers: Tensor, bounds: tuple[float, float]
    ) -> Float[Tensor, " S"]:
        """Bounded |w| / |step| of the tensor to which each slice belongs, in float64; 1 where a norm is 0."""
        squares = torch.zeros(2, self._num_tensors, dtype=torch.float64, device=numbers.device)
        for row, slices in zip(squares, (weights, updates), strict=True):
            if slices:
                row[numbers] = torch.stack(torch._foreach_norm(slices, dtype=torch.float64)).square()
        if self._process_group is not None:
            dist.all_reduce(squares, group=self._process_group)  # also on ranks without slices of these masters
        weight, update = squares.sqrt()
        ratios = torch.where((weight > 0) & (update > 0), (weight / update).clamp(*bounds), 1.0)
        return ratios[numbers]
