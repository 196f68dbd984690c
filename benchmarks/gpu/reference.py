"""Gradients of a model on a batch, and the same in float64 on the CPU: what every other path is compared with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.gpu.device import device
from xlpretrain.models import attention
from xlpretrain.models.backbone import OutputLayer
from xlpretrain.models.kernels.fused.choice import why_not
from xlpretrain.models.kernels.fused.tiles import Tiles, admissible, use_tiles
from xlpretrain.models.pretraining_model import Batch, PretrainingModel

IN_MEMORY = "fused, scores in memory"
"""Fused attention, whose programs make no scores by position, but read them."""


@dataclass(frozen=True)
class Outcome:
    """The mean loss, and the gradient of each parameter, in float64 on the CPU."""

    loss: float
    gradients: Mapping[str, Tensor | None]


@dataclass(frozen=True)
class Errors:
    """Differences from a reference, relative to its norm."""

    loss: float
    gradient: float
    worst: float
    """The largest of the parameters, without those whose gradient is below 0.1 % of the whole."""
    worst_name: str


def exact(model: PretrainingModel, batch: Batch, mems: Tensor) -> Outcome:
    """Compute in float64 on the CPU, by the plain formulas of attention and of the loss, with the model's weights."""
    copied = copy.deepcopy(model).to("cpu", torch.float64)
    use_attention(copied, "plain")
    for module in copied.modules():
        if isinstance(module, OutputLayer):
            module.token_losses = partial(_token_losses, module)  # type: ignore[method-assign]
    with _InFloat64():
        return gradients(copied, batch.to(torch.device("cpu")), mems.to("cpu", torch.float64))


def gradients(model: PretrainingModel, batch: Batch, mems: Tensor) -> Outcome:
    """One forward and backward pass, where the model and its inputs are."""
    model.zero_grad(set_to_none=True)
    loss, _ = model(batch, mems)
    total = torch.stack([loss.sums[term] / max(count, 1) for term, count in batch.counts.items()]).sum()
    total.backward()
    found = {name: None if p.grad is None else p.grad.detach().cpu().double() for name, p in model.named_parameters()}
    return Outcome(float(total.detach()), found)


def errors(found: Outcome, right: Outcome) -> Errors:
    """Compare an outcome with the right one."""
    whole = _norm(right.gradients.values())
    differences = {name: _difference(found.gradients[name], right.gradients[name]) for name in right.gradients}
    relative = {
        name: float(differences[name].norm() / norm)
        for name, gradient in right.gradients.items()
        if gradient is not None and (norm := float(gradient.norm())) > 1e-3 * whole
    }
    worst = max(relative, key=lambda name: relative[name])
    loss = abs(found.loss - right.loss) / abs(right.loss)
    return Errors(loss, _norm(differences.values()) / whole, relative[worst], worst)


def implementations() -> list[str]:
    """All implementations of attention that the device has: those of the code, `blocks` only on a CPU."""
    missing = {"blocks"} if torch.cuda.is_available() else set()
    if why_not(device()) is not None:
        missing.add("fused")
    names = [*get_args(attention.Implementation), *([] if "fused" in missing else [IN_MEMORY])]
    return [name for name in names if name not in missing]


def use_attention(model: torch.nn.Module, implementation: str | None) -> None:
    """Set the implementation of every attention of a model: one of `implementations`, or None."""
    for module in model.modules():
        if isinstance(module, attention.Attention):
            module.implementation = "fused" if implementation == IN_MEMORY else implementation  # type: ignore[assignment]
            weight = module.query.weight
            place = weight.device, weight.dtype, module.d_head
            in_memory = implementation == IN_MEMORY
            use_tiles(*place, Tiles(admissible(*place)[0].memory, None) if in_memory else None)


def without_samples(batch: Batch) -> Batch:
    """The batch of a rank that has no samples."""
    none = {key: value[:0] for key, value in vars(batch.inputs).items() if isinstance(value, Tensor)}
    targets = {key: value[:0] for key, value in batch.targets.items()}
    return Batch(replace(batch.inputs, **none), targets, dict.fromkeys(batch.counts, 0))


def _token_losses(output: OutputLayer, hidden: Tensor, targets: Tensor, **_: Any) -> tuple[Tensor, None]:
    return -output.log_probs(hidden).gather(1, targets[:, None])[:, 0], None


class _InFloat64(TorchFunctionMode):
    """Computes in float64 what the code asks to be computed in float32."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is Tensor.float:
            function = Tensor.double
        return function(*map(_wide, args), **{key: _wide(value) for key, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _norm(tensors: Any) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors if tensor is not None]).norm())


def _difference(found: Tensor | None, right: Tensor | None) -> Tensor:
    if found is None or right is None:
        return torch.zeros(()) if found is right else torch.full((), torch.nan)
    return found - right
