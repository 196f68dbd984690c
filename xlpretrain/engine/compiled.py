"""Compilation of a model by region: each layer, and the projection onto the vocabulary with its loss.

Layers of the same kind share their code, so a deep model compiles as fast as a shallow one. Only what is trained is
compiled: evaluations have other lengths, and would be compiled again for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xlpretrain.models.attention_mask import AttentionMask
from xlpretrain.models.pretraining_model import PretrainingModel

ModuleKinds = tuple[type[nn.Module], ...]


def compile_regions(model: PretrainingModel, kinds: ModuleKinds, *, backend: str = "inductor") -> None:
    """Compile the modules of these kinds in place, so that parameters keep their names.

    A backbone that has none of them, since it is not made of our layers, is compiled as a whole. An adaptive softmax is
    not compiled: each number of targets in a cluster would be a new shape.
    """
    if not any(isinstance(module, kinds) for module in model.backbone.modules()):
        model.backbone.compile(backend=backend)
    for module in model.modules():
        if isinstance(module, kinds) and not getattr(module, "num_tails", 0):
            module.forward = _Region(module.forward, backend)


def uncompiled_modules(module: nn.Module) -> Iterator[nn.Module]:
    """A module and those within it, but none within a compiled one: hooks on those would be compiled, or ignored."""
    yield module
    if isinstance(module.forward, _Region) or getattr(module, "_compiled_call_impl", None) is not None:
        return
    for child in module.children():
        yield from uncompiled_modules(child)


class _Region:
    """The forward pass of a module: compiled in training, for any number of samples (or predictions)."""

    def __init__(self, forward: Callable[..., Any], backend: str):
        self._forward = forward
        self._compiled = torch.compile(forward, backend=backend)

    def __call__(self, first: Tensor, *others: Any) -> Any:
        if not torch.is_grad_enabled() or not first.numel():
            return self._forward(first, *others)
        _mark_dynamic(first, others)
        return self._compiled(first, *others)


def _mark_dynamic(first: Tensor, others: Sequence[Any]) -> None:
    """Mark what changes from batch to batch: the number of samples, or of their packed tokens."""
    packed = [mask for mask in others if isinstance(mask, AttentionMask) and mask.offsets is not None]
    for mask in packed:
        torch._dynamo.maybe_mark_dynamic(first, 1)
        torch._dynamo.maybe_mark_dynamic(mask.added, [1, 2])
        torch._dynamo.maybe_mark_dynamic(mask.offsets, 0)
    for tensor in () if packed else (first, *_by_sample(others)):
        if tensor.shape[:1] == first.shape[:1]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _by_sample(others: Sequence[Any]) -> Iterator[Tensor]:
    """Tensors whose first dimension is the number of samples, or that have nothing to do with it.

    So not attention biases [N, H] and sets of distances [G, R, D], of which there may be as many as samples.
    """
    for argument in others:
        if dataclasses.is_dataclass(argument):
            named = {f.name: getattr(argument, f.name) for f in dataclasses.fields(argument) if f.name != "distances"}
            yield from (value for value in named.values() if isinstance(value, Tensor))
        elif isinstance(argument, Tensor) and (argument.ndim > 2 or not argument.is_floating_point()):
            yield argument
