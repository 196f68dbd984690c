"""The optimizer interface for engines: config keys, parameter groups, state, and the view of parameters.

An engine passes the model's parameters by name to `OptimizerConfig.build`, and sets each group's learning rate before
each step. ZeRO then replaces the parameters in the groups by *masters*: for each group one or more flat fp32 tensors,
slices of the group's concatenated parameters, with padding. So all parameters of a group share learning rate, decay,
update rule and state keys, and an optimizer must identify groups by keys that it adds to them, never by `params`. For
each master the engine initializes `optimizer.state`: zeros for each state key, and the scalar `step`, the number of
updates so far, which the optimizer may increment.

An element-wise optimizer (AdamW) works on masters without changes. A layer-wise one (LAMB) needs norms of whole
tensors, one of whole matrices (Muon) assembles them (`whole_tensors.py`); `LayerwiseOptimizer.set_parameter_slices`
gives them the location of each tensor in the masters.

A tensor is a weight matrix or vector as in the paper. A parameter shared by many layers is one tensor. A parameter that
stacks several tensors along its first dimension (query, key and value in one matrix) declares it with an attribute:

    self.qkv = nn.Parameter(torch.empty(3 * d_model, d_model))
    self.qkv.num_fused = 3
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from xlpretrain.errors import ConfigError
from xlpretrain.optim.groups import (
    OTHERS,
    GroupConfig,
    StateKeys,
    first_matches,
    layer_factors,
    matching,
    pattern_problems,
    unmatched_problems,
)
from xlpretrain.schema import Problem, Section, format_problems

AVERAGE = "average"
"""Kind of state of the moving average of a parameter."""

ParameterView = Literal["elements", "slices", "parameters"]


class AverageConfig(Section):
    """An exponential moving average of the weights, evaluated beside them.

    After update t = 1, 2, ... that counts: average += (1 - decay) / (1 - decay^t) * (weights - average). So the weights
    after update s have the share decay^(t - s) of the sum of all shares, and initial weights have none.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Decay rate. The average covers about the last every / (1 - decay) updates."""
    every: Annotated[int, Field(gt=0)] = 1
    """Number of updates between two that count."""


class OptimizerConfig(Section, ABC):
    """The keys common to all optimizers."""

    type: str
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, which the schedule scales."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of matrices; parameters with fewer than two dimensions (biases, norms) never decay."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Maximum global L2 norm of the gradient; 0: no clipping."""

    groups: tuple[GroupConfig, ...] = ()
    """Parameter groups with their own learning rate or weight decay; the first pattern that matches a name applies."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise learning-rate decay: this factor is applied once per layer from the head (1) down to the embedding, on
    top of lr_factor (null: none)."""
    frozen: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Shell patterns of parameters that are not trained, such as backbone.embedding.*: they have neither gradient nor
    optimizer state, and do not count in the gradient norm."""

    average: AverageConfig | None = None
    """Keep a moving average of the weights as state, in fp32 (null: none)."""

    parameter_view: ClassVar[ParameterView]
    """The view of parameters that an update needs: single elements; slices of parameters, given by
    `LayerwiseOptimizer.set_parameter_slices`; or whole parameters, which ZeRO stages above 0 do not have and therefore
    refuse."""

    @abstractmethod
    def state_keys(self, name: str, shape: Sequence[int]) -> StateKeys:
        """Names of a parameter's fp32 state tensors, of the parameter's shape, besides the scalar `step`."""

    def kinds(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, ...]]:
        """Kinds of state that an engine keeps for each parameter: `weight`; if it is trained, its state keys; and
        `average` if asked for."""
        keys, averages = self.trained_state_keys(shapes), () if self.average is None else (AVERAGE,)
        return {name: ("weight", *((*keys[name], *averages) if name in keys else ())) for name in shapes}

    def trained_state_keys(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, StateKeys]:
        """The state keys of each parameter that is trained."""
        frozen = self.frozen_names(shapes)
        return {name: self.state_keys(name, shape) for name, shape in shapes.items() if name not in frozen}

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Build the optimizer over `parameter_groups` of the named parameters (each once), without state.

        With `parameter_view` "slices", it must be a `LayerwiseOptimizer`.
        """

    def parameter_groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Non-empty parameter groups for torch, in the order of `groups`, then the rest; in each, matrices first.

        Frozen parameters are left out. Parameters that differ in any of these are split into separate groups: two
        dimensions or more (matrices decay), learning-rate factor, and state keys. Keys of a group: `params` and their
        `names`, the pattern as `label`, `lr_factor`, by which the engine multiplies the scheduled rate, `weight_decay`,
        and `state_keys`.

        Raises:
            ConfigError: a pattern applies to no parameter, all are frozen, or there are no layers for `layer_decay`.
        """
        names = list(parameters)
        if problems := list(self.name_problems(names)):
            raise ConfigError(format_problems("optimizer", problems))
        matches, frozen = first_matches(self.groups, names), self.frozen_names(names)
        factors = {} if self.layer_decay is None else layer_factors(names, self.layer_decay)
        found: dict[tuple[int, bool, float, StateKeys], dict[str, Any]] = {}
        for name, parameter in parameters.items():
            if name in frozen:
                continue
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

    def frozen_names(self, names: Iterable[str]) -> set[str]:
        """The names of parameters that are not trained."""
        return matching(self.frozen, names)

    def freeze(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Exclude the frozen parameters from gradients, and return them in their order."""
        names = self.frozen_names(parameters)
        frozen = {name: parameter for name, parameter in parameters.items() if name in names}
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        return frozen

    @property
    def uses_names(self) -> bool:
        """True if some keys refer to a model's parameters, so that `name_problems` may find a problem."""
        return bool(self.groups or self.frozen) or self.layer_decay is not None

    def name_problems(self, names: Sequence[str]) -> Iterator[Problem]:
        """Yield problems of this section for a model with these parameter names; paths are relative to the section."""
        frozen = self.frozen_names(names)
        yield from unmatched_problems("frozen", self.frozen, names)
        if frozen.issuperset(names):
            yield "frozen", f"matches every parameter ({', '.join(self.frozen)}), so nothing is left to train"
            return
        yield from pattern_problems(self.groups, names, frozen=frozen)
        if self.layer_decay is not None and not layer_factors(names, self.layer_decay):
            yield "layer_decay", "this model has no parameters named layers.N., which identify its layers; use groups"


@dataclass(frozen=True)
class TensorSlice:
    """Elements [offset, offset + size) of a flattened master, which belong to tensor number `tensor` of the model.

    start: their place in the flattened tensor. shape: that of the whole tensor.
    """

    tensor: int
    offset: int
    size: int
    start: int = 0
    shape: tuple[int, ...] = ()

    def of(self, tensor: Tensor) -> Tensor:
        """The slice of a master, or of a tensor with its layout."""
        return tensor.view(-1)[self.offset : self.offset + self.size]


class LayerwiseOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that needs norms of whole tensors, or whole tensors, and computes them from slices."""

    @abstractmethod
    def set_parameter_slices(
        self, slices: Mapping[Tensor, Sequence[TensorSlice]], *, num_tensors: int, group: dist.ProcessGroup | None
    ) -> None:
        """Set the location of each tensor in the masters. Called before the first step.

        Args:
            slices: slices of every master of this rank, at most one per tensor; padding belongs to no slice.
            num_tensors: number of tensors in the model, over all masters and ranks; they are numbered from 0.
            group: ranks that hold the other parts of the tensors; None if every rank holds all of them.
        """
