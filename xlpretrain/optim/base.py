"""The interface of an optimizer to the engines: its keys, its parameter groups, its state, and its view of parameters.

An engine gives `OptimizerConfig.build` the model's parameters by name, and sets each group's rate before each step.
ZeRO then puts *masters* into the groups: for each group one or more flat fp32 tensors, slices of the group's parameters
laid end to end, with padding. So a group's parameters share their rate, decay, rule and state keys, and an optimizer
tells groups apart by keys that it adds to them, never by `params`. Of the state of each master (`optimizer.state`) the
engine makes zeros for its state keys, and the scalar `step`, the number of updates so far, in which the optimizer may
count on.

An element-wise optimizer (AdamW) is right on masters as it is. A layer-wise one (LAMB) needs norms of whole tensors,
and is told by `LayerwiseOptimizer.set_parameter_slices` where in the masters each tensor is.

A tensor is what the paper calls one: a parameter used by many layers is one, and a parameter that is several tensors
stacked along its first dimension (query, key and value in one matrix) says so by an attribute:

    self.qkv = nn.Parameter(torch.empty(3 * d_model, d_model))
    self.qkv.num_fused = 3
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.errors import ConfigError
from xlpretrain.optim.groups import OTHERS, GroupConfig, StateKeys, first_matches, layer_factors, pattern_problems
from xlpretrain.schema import Problem, Section, format_problems

ParameterView = Literal["elements", "slices", "parameters"]


class OptimizerConfig(Section, ABC):
    """The keys every optimizer has."""

    type: str
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, which the schedule scales."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled decay of the matrices; parameters with fewer than two dimensions (biases, norms) never decay."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global L2 norm of the gradient; 0 for none."""

    groups: tuple[GroupConfig, ...] = ()
    """Parameters with a rate or decay of their own; the first pattern that matches a parameter's name applies to it."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise decay of the learning rate: a factor for each layer from the head (1) down to the embedding, on top
    of lr_factor (null: none)."""

    parameter_view: ClassVar[ParameterView]
    """The view that an update needs: elements alone; slices of parameters, given by
    `LayerwiseOptimizer.set_parameter_slices`; or whole parameters, which no ZeRO stage above 0 has, so that the engine
    refuses it there."""

    @abstractmethod
    def state_keys(self, name: str, shape: Sequence[int]) -> StateKeys:
        """Names of the fp32 tensors, of the parameter's shape, that are kept for it beside the scalar `step`."""

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over `parameter_groups` of the named parameters (each once), with no state yet.

        For `slices` it is a `LayerwiseOptimizer`.
        """

    def parameter_groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups for torch, none of them empty, in the order of `groups`, then the rest; matrices first.

        Each is split by what its members must share: two dimensions or more (they decay), factor, and state keys. Keys:
        `params` and their `names`, the pattern as `label`, `lr_factor`, by which the engine multiplies the scheduled
        rate, `weight_decay`, and `state_keys`.

        Raises:
            ConfigError: a pattern applies to no parameter, or there are no layers for `layer_decay`.
        """
        names = list(parameters)
        if problems := list(self.name_problems(names)):
            raise ConfigError(format_problems("optimizer", problems))
        matches = first_matches(self.groups, names)
        factors = {} if self.layer_decay is None else layer_factors(names, self.layer_decay)
        found: dict[tuple[int, bool, float, StateKeys], dict[str, Any]] = {}
        for name, parameter in parameters.items():
            rule = matches.get(name, len(self.groups))
            given = self.groups[rule] if name in matches else GroupConfig(match=OTHERS)
            is_vector, factor = parameter.ndim < 2, given.lr_factor * factors.get(name, 1.0)
            decay = self.weight_decay if given.weight_decay is None else given.weight_decay
            keys = self.state_keys(name, parameter.shape)
            group = found.setdefault(
                (rule, is_vector, factor, keys),
                {
                    "params": [],
                    "names": [],
                    "label": given.match,
                    "lr_factor": factor,
                    "weight_decay": 0.0 if is_vector else decay,
                    "state_keys": keys,
                },
            )
            group["params"].append(parameter)
            group["names"].append(name)
        return [found[key] for key in sorted(found, key=lambda key: key[:2])]

    def name_problems(self, names: Sequence[str]) -> Iterator[Problem]:
        """Yield what does not fit a model with parameters of these names; paths are relative to this section."""
        yield from pattern_problems(self.groups, names)
        if self.layer_decay is not None and not layer_factors(names, self.layer_decay):
            yield "layer_decay", "this model has no parameter named layers.N., by which layers are told; use groups"


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
