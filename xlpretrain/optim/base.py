"""The interface of an optimizer to the engines: its keys, the view of parameters that it needs, and which of them
decay.

ZeRO hands an optimizer flat *masters*: fp32 slices of many parameters laid end to end, with padding. One that is
element-wise (AdamW) is right on them as it is. One that is layer-wise (LAMB) needs norms of whole tensors, and is told
by `LayerwiseOptimizer.set_parameter_slices` where in the master weights each tensor is.

A tensor is what the paper calls one: a parameter used by many layers is one, and a parameter that is several tensors
stacked along its first dimension (query, key and value in one matrix) says so by an attribute:

    self.qkv = nn.Parameter(torch.empty(3 * d_model, d_model))
    self.qkv.num_fused = 3
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.schema import Section

ParameterView = Literal["elements", "slices", "parameters"]


class OptimizerConfig(Section, ABC):
    """The keys every optimizer has."""

    type: str
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, which the schedule scales."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled decay of the matrices; parameters with fewer than two dimensions (biases, norms) do not decay."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global L2 norm of the gradient; 0 for none."""

    state_keys: ClassVar[tuple[str, ...]]
    """Names of the fp32 tensors kept per parameter, beside the scalar `step`."""
    parameter_view: ClassVar[ParameterView]
    """The view that an update needs: elements alone; slices of parameters, given by
    `LayerwiseOptimizer.set_parameter_slices`; or whole parameters, which no ZeRO stage above 0 has, so that the engine
    refuses it there."""

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `parameters` (each once), with no state; a `LayerwiseOptimizer` for slices."""


@dataclass(frozen=True)
class TensorSlice:
    """`size` elements from `offset` on, in a flattened master, are part of tensor number `tensor` of the model."""

    tensor: int
    offset: int
    size: int


class LayerwiseOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that needs norms of whole tensors, and knows how to get them from slices."""

    @abstractmethod
    def set_parameter_slices(
        self, slices: Mapping[Tensor, Sequence[TensorSlice]], *, num_tensors: int, group: dist.ProcessGroup | None
    ) -> None:
        """Learn where tensors lie, before the first step.

        Args:
            slices: for every master of this rank; those of one tensor are a single slice. Padding is in none.
            num_tensors: of the model, over all masters and ranks: they are numbered from 0.
            group: the ranks that hold the rest of the tensors; None where every rank holds all of them.
        """


def weight_decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups for torch: those with two dimensions or more decay, the others do not. None is empty."""
    parameters = list(parameters)
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
