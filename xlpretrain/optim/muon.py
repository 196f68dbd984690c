"""Muon: momentum, orthogonalized (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), with AdamW beside it.

The update of a matrix equals that of `torch.optim.Muon` (torch 2.9 and newer) in every bit. That class is not used
because it takes whole parameters only, and orthogonalizes in bf16 only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.errors import ConfigError
from xlpretrain.optim.adamw import Betas, adam_update
from xlpretrain.optim.base import LayerwiseOptimizer, OptimizerConfig, ParameterView, TensorSlice
from xlpretrain.optim.groups import StateKeys, matching, unmatched_problems
from xlpretrain.optim.whole_tensors import WholeTensors
from xlpretrain.schema import Problem, Section, format_problems

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: its slope at 0 is as large as possible, and singular values end up between 0.7 and 1.2."""

_MOMENTUM = ("momentum_buffer",)
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class AdamWRule(Section):
    """AdamW for the parameters that Muon does not update."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, which the schedule scales."""
    betas: Betas = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the square root of the second moment."""
    bias_correction: bool = True
    """Divide the moments by 1 - beta^step, to correct for their start at 0."""


class MuonConfig(OptimizerConfig):
    """Muon for the matrices of layers; AdamW for embeddings, heads, biases and norms."""

    type: Literal["muon"] = "muon"
    """Kind of optimizer."""
    lr: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate of the matrices, which the schedule scales."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the moving average of gradients."""
    nesterov: bool = True
    """Orthogonalize the average of the gradient and the momentum, with the momentum's share as weight."""
    ns_steps: Annotated[int, Field(gt=0, lt=100)] = 5
    """Steps of the Newton-Schulz iteration that orthogonalizes."""
    eps: Annotated[float, Field(gt=0)] = 1e-7
    """Lower bound of the norm by which a matrix is divided before."""
    orthogonalize_in: Literal["bf16", "fp32"] = "bf16"
    """Data type of the iteration. The momentum is always kept in fp32."""
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original"
    """Factor of the rate of a matrix of A rows and B columns: original (sqrt(max(1, A / B))), or match_rms_adamw
    (0.2 sqrt(max(A, B)), with which steps are as large as AdamW's, so that its rates and decays fit)."""
    matrices: tuple[Annotated[str, Field(min_length=1)], ...] = ("backbone.layers.*",)
    """Shell patterns of the parameters that Muon updates, if they are matrices; AdamW updates all others."""
    adamw: AdamWRule = AdamWRule()
    """AdamW for all other parameters."""

    parameter_view: ClassVar[ParameterView] = "slices"

    def state_keys(self, name: str, shape: Sequence[int]) -> StateKeys:
        """The momentum of a matrix; two moments of any other parameter."""
        is_matrix = len(shape) == 2 and matching(self.matrices, [name])
        return _MOMENTUM if is_matrix else ("exp_avg", "exp_avg_sq")

    @property
    def uses_names(self) -> bool:
        """True: `matrices` are found by name."""
        return True

    def name_problems(self, names: Sequence[str]) -> Iterator[Problem]:
        """Yield those of all optimizers, and patterns in `matrices` that match nothing."""
        yield from super().name_problems(names)
        yield from unmatched_problems("matrices", self.matrices, names)

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        groups = self.parameter_groups(parameters)
        if all(group["state_keys"] != _MOMENTUM for group in groups):
            problem = f"{', '.join(self.matrices)} matches no matrix that is trained; use type adamw, or other patterns"
            raise ConfigError(format_problems("optimizer", [("matrices", problem)]))
        for group in groups:
            if group["state_keys"] != _MOMENTUM:
                group["lr_factor"] *= self.adamw.lr / self.lr
                group |= self.adamw.model_dump(include={"betas", "eps", "bias_correction"})
        return Muon(groups, self)


class Muon(LayerwiseOptimizer):
    """Muon and AdamW on masters. An update of a matrix sends its momentum to one rank and its step back."""

    def __init__(self, groups: list[dict[str, Any]], config: MuonConfig):
        super().__init__(groups, {"lr": config.lr})
        self._config = config
        self._orthogonalize = partial(orthogonalize, steps=config.ns_steps, eps=config.eps)
        self._slices: Mapping[Tensor, Sequence[TensorSlice]] | None = None

    def set_parameter_slices(
        self, slices: Mapping[Tensor, Sequence[TensorSlice]], *, num_tensors: int, group: dist.ProcessGroup | None
    ) -> None:
        self._slices, self._whole_tensors = slices, WholeTensors(slices, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if self._slices is None:
            raise RuntimeError("call set_parameter_slices before step")
        for group in self.param_groups:
            masters = [master for master in group["params"] if master.grad is not None]
            if group["state_keys"] != _MOMENTUM:
                rule = {key: group[key] for key in ("lr", "weight_decay", "bias_correction")}
                adam_update(masters, masters, self.state, group, **rule)
                continue
            for master in masters:
                self._update(master, lr=group["lr"], weight_decay=group["weight_decay"])

    def _update(self, master: Tensor, *, lr: float, weight_decay: float) -> None:
        """w = (1 - lr * weight_decay) * w - lr * factor * orthogonalized momentum; padding is not changed."""
        assert self._slices is not None and master.grad is not None
        config, average = self._config, self.state[master]["momentum_buffer"]
        average.lerp_(master.grad, 1 - config.momentum)
        step = master.grad.lerp(average, config.momentum) if config.nesterov else average
        step = step.to(_DTYPES[config.orthogonalize_in], copy=not config.nesterov)
        self._whole_tensors.apply(self._orthogonalize, step, master=master)
        for s in self._slices[master]:
            weight = s.of(master)
            weight.mul_(1 - lr * weight_decay)
            weight.add_(s.of(step), alpha=-lr * rate_factor(config.adjust_lr_fn, s.shape))


def orthogonalize(matrix: Float[Tensor, "A B"], *, steps: int, eps: float) -> Float[Tensor, "A B"]:
    """Approximate U V^T, where U S V^T is the singular value decomposition of the matrix, in the matrix's data type.

    The Newton-Schulz iteration X <- a X + (b X X^T + c (X X^T)^2) X, from X = matrix / |matrix|. The operations are
    those of `torch.optim.Muon`, in the same order.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def rate_factor(adjust_lr_fn: str, shape: Sequence[int]) -> float:
    """Factor of the rate of a matrix of this shape (`MuonConfig.adjust_lr_fn`)."""
    rows, columns = shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
