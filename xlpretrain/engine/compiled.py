"""Compilation of a model by region: each layer, and the projection onto the vocabulary with its loss.

Layers of the same kind share their code, so a deep model compiles as fast as a shallow one. Only what is trained is
compiled: evaluations have other lengths, and would be compiled again for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xlpretrain.models.pretraining_model import PretrainingModel

ModuleKinds = tuple[type[nn.Module], ...]


def compile_regions(model: PretrainingModel, kinds: ModuleKinds, *, backend: str = "inductor") -> None:
    """Compile the modules of these kinds in place, so that parameters keep their names.

    A backbone that has none of them, since it is not made of our layers, is compiled as a whole.
    """
    if not any(isinstance(module, kinds) for module in model.backbone.modules()):
        model.backbone.compile(backend=backend)
    for module in model.modules():
        if isinstance(module, kinds):
            module.forward = _Region(module.forward, backend)


class _Region:
    """The forward pass of a module: compiled in training, for any number of samples (or predictions)."""

    def __init__(self, forward: Callable[..., Any], backend: str):
        self._forward = forward
        self._compiled = torch.compile(forward, backend=backend)

    def __call__(self, first: Tensor, *others: Any) -> Any:
        if not torch.is_grad_enabled() or not first.numel():
            return self._forward(first, *others)
        torch._dynamo.maybe_mark_dynamic(first, 0)
        for argument in others:
            _mark_samples(argument, len(first))
        return self._compiled(first, *others)


def _mark_samples(argument: Any, number: int) -> None:
    """Mark the first dimension of tensors as dynamic if it is the number of samples.

    Not that of attention biases [N, H] and of the sets of distances in a dataclass, which may be equally many.
    """
    if dataclasses.is_dataclass(argument):
        for field in dataclasses.fields(argument):
            value = getattr(argument, field.name)
            if isinstance(value, Tensor) and not value.is_floating_point():
                _mark_samples(value, number)
        return
    if not isinstance(argument, Tensor) or (argument.ndim < 3 and argument.is_floating_point()):
        return
    if argument.shape[:1] == (number,):
        torch._dynamo.maybe_mark_dynamic(argument, 0)
