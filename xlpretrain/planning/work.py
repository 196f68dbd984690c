"""The work of a rank in a training step: matrix products, bytes read and written, and number of operations.

Counted on tensors that have shapes and no values (`activations.model_without_values`), on the paths that the code takes
on a GPU or on a CPU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine.config import DTYPES
from xlpretrain.models.parts.clusters import TargetClusters
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.planning.activations import DeviceKind, ScalarsAreReal, model_without_values
from xlpretrain.planning.device_work import NO_KERNEL, AsOnCuda, Operations
from xlpretrain.planning.full_batches import full_batch
from xlpretrain.planning.memory import micro_batch_sizes

LAYERS, LOSS, UPDATE = "layers", "loss", "update"
"""Parts of a step: embedding and layers, forward and backward; head and loss, the same; the optimizer's update."""
PRODUCT, ATTENTION, OTHER = "product", "attention", "other"
"""Kinds of operations: matrix products, attention's products, and all others, which read and write memory."""
_FLOPS = {packet.__name__: count for packet, count in flop_registry.items() if hasattr(packet, "__name__")}
_FP32 = 4
_UPDATE_OPERATIONS = 20
_COUNTED_ON_CPU = 1


class Operation(NamedTuple):
    """One operation of a device."""

    part: str
    kind: str
    name: str
    dtype: torch.dtype
    """Data type of its result."""
    flops: int
    """Of matrix products; 0 for others."""
    num_bytes: int
    """Bytes read and written, if each of its tensors is read or written once."""


@dataclass(frozen=True)
class Work:
    """The operations of a rank: those of a micro-batch, forward and backward, and those of an update, and how many."""

    micro_batch: Mapping[Operation, int]
    update: Mapping[Operation, int]
    num_micro_batches: int

    @property
    def step(self) -> dict[Operation, int]:
        """The operations of a whole step."""
        passes = {operation: count * self.num_micro_batches for operation, count in self.micro_batch.items()}
        return {**passes, **self.update}

    @property
    def flops(self) -> int:
        """FLOPs of all products of a step."""
        return sum(operation.flops * count for operation, count in self.step.items())


class WorkCounter(Operations):  # type: ignore[no-untyped-call]
    """Counts operations on one type of device, with their FLOPs and bytes, by part of the step."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.operations: Counter[Operation] = Counter()
        self.part = LAYERS
        self._device = device

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        result = function(*args, **given)
        name = function.overloadpacket.__name__
        values = torch.utils._pytree.tree_leaves((args, given, result))
        tensors = [value for value in values if isinstance(value, Tensor)]
        if name != "device" and any(tensor.device.type == self._device for tensor in tensors):
            if name in NO_KERNEL:
                self._record(OTHER, "view", [], 0)
                return result
            count = _FLOPS.get(name.rstrip("_"))  # an operation in place has the same
            given.pop("out", None)
            flops = 0 if count is None else int(count(*args, **given, out_val=result))
            kind = OTHER if not flops else ATTENTION if self._is_attention(name) else PRODUCT
            self._record(kind, name, tensors, flops)
        return result

    def add(self, name: str, tensors: Any) -> None:
        """Count fused attention, forward or backward, on these tensors: query, key and value first."""
        query, key, value, *_ = tensors = list(tensors)
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        products = 2 if name == "fused_attention" else 5  # scores again, and the gradients of all three factors
        self._record(ATTENTION, name, tensors, products * scores * (query.shape[-1] + value.shape[-1]))

    def _is_attention(self, name: str) -> bool:
        return "attention" in name or (self._device == "cpu" and "bmm" in name)  # its tiles are batched products

    def _record(self, kind: str, name: str, tensors: list[Tensor], flops: int) -> None:
        distinct = {id(tensor): tensor for tensor in tensors}.values()
        moved = sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in distinct)
        dtype = tensors[-1].dtype if tensors else torch.uint8
        self.operations[Operation(self.part, kind, name, dtype, flops, moved)] += 1


def work_of(config: RunConfig, *, vocab_size: int, num_ranks: int, device: DeviceKind) -> Work:
    """Count the work of the rank with the most samples; `micro_batch_size` must be a number."""
    assert isinstance(config.micro_batch_size, int), "resolved"
    sizes = micro_batch_sizes(config, num_ranks=num_ranks, micro_batch_size=config.micro_batch_size)
    model = model_without_values(config, vocab_size=vocab_size, device=device)
    if device == "cuda" or max(sizes) <= _COUNTED_ON_CPU + 1:
        micro_batch = _count(config, model, vocab_size, num_samples=max(sizes), device=device)
    else:
        fewer, more = (
            _count(config, model, vocab_size, num_samples=_COUNTED_ON_CPU + each, device=device) for each in (0, 1)
        )
        micro_batch = _extended(fewer, more, max(sizes) - _COUNTED_ON_CPU)
    for operation in _gradients(config, model, accumulates=len(sizes) > 1):
        micro_batch[operation] += 1
    return Work(micro_batch, _update(config, model), len(sizes))


def _count(
    config: RunConfig, model: PretrainingModel, vocab_size: int, *, num_samples: int, device: DeviceKind
) -> Counter[Operation]:
    """Count the forward and backward pass of a micro-batch."""
    batch = full_batch(config, model.backbone, vocab_size=vocab_size, num_samples=num_samples)
    batch = _with_usual_targets(batch, model.backbone.cluster_edges)
    if device == "cuda":
        batch = batch.map(lambda tensor: tensor.to("meta"))
    mems = model.backbone.empty_memory(num_samples, config.model.mem_len)
    counter = WorkCounter("cpu" if device == "cpu" else "meta")
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(AsOnCuda() if device == "cuda" else ScalarsAreReal())  # type: ignore[no-untyped-call]
        stack.enter_context(_parts_by_module(model, counter))
        stack.enter_context(counter)
        loss, _ = model(batch, mems)
        total = torch.stack(list(loss.sums.values())).sum()
        counter.part = LOSS  # until the backward pass reaches the layers
        total.backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.grad = None
    return counter.operations


def _with_usual_targets(batch: Batch, edges: tuple[int, ...]) -> Batch:
    """The batch for an adaptive softmax with targets that follow Zipf's law, as in data sorted by frequency."""
    if not edges:
        return batch
    targets, clusters = dict(batch.targets), {}
    for term in batch.clusters:
        ranks = torch.linspace(0, 1, len(targets[term])).mul(math.log(edges[-1])).exp()
        targets[term] = (ranks.long() - 1).clamp(0, edges[-1] - 1)
        clusters[term] = TargetClusters.find(targets[term], edges)
    return replace(batch, targets=targets, clusters=clusters)


@contextmanager
def _parts_by_module(model: PretrainingModel, counter: WorkCounter) -> Iterator[None]:
    """Attribute operations to the loss from the head's inputs on, and in the backward pass until their gradient."""

    def enter(module: Any, inputs: tuple[Any, ...]) -> None:
        counter.part = LOSS
        states = inputs[0].tokens if inputs[0].predictions is None else inputs[0].predictions
        if states.requires_grad:
            states.register_hook(leave)

    def leave(gradient: Tensor) -> None:
        counter.part = LAYERS

    hook = model.head.register_forward_pre_hook(enter)
    try:
        yield
    finally:
        hook.remove()


def _extended(fewer: Mapping[Operation, int], more: Mapping[Operation, int], times: int) -> Counter[Operation]:
    """Extend the difference of two counts: each further sample adds the same work."""
    first, second = _totals(fewer), _totals(more)
    found: Counter[Operation] = Counter()
    for kind in first | second:
        here, there = first.get(kind, (0, 0, 0)), second.get(kind, (0, 0, 0))
        count, flops, moved = (max(0, a + times * (b - a)) for a, b in zip(here, there, strict=True))
        if count:
            part, what, name, dtype = kind
            found[Operation(part, what, name, dtype, flops // count, moved // count)] += count
    return found


def _totals(operations: Mapping[Operation, int]) -> dict[tuple[Any, ...], tuple[int, int, int]]:
    """Number, FLOPs and bytes of the operations of each kind."""
    found: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    for operation, count in operations.items():
        *kind, flops, moved = operation
        before = found.get(tuple(kind), (0, 0, 0))
        found[tuple(kind)] = (before[0] + count, before[1] + count * flops, before[2] + count * moved)
    return found


def _gradients(config: RunConfig, model: PretrainingModel, *, accumulates: bool) -> Iterator[Operation]:
    """The operation of each parameter that writes its gradient, or adds it to those of earlier micro-batches."""
    computed, kept = DTYPES[config.engine.precision].itemsize, DTYPES[config.engine.grad_dtype].itemsize
    for parameter in model.parameters():
        moved = parameter.numel() * (computed + kept * (2 if accumulates else 1))
        yield Operation(LAYERS, OTHER, "add_", DTYPES[config.engine.grad_dtype], 0, moved)


def _update(config: RunConfig, model: PretrainingModel) -> dict[Operation, int]:
    """The passes of an update over gradients (norm and clipping), weights and optimizer state.

    A layer-wise optimizer writes its step and reads it twice, for its norm and to apply it, and the weights once more.
    """
    moved = 0
    kinds = config.optimizer.kinds({name: parameter.shape for name, parameter in model.named_parameters()})
    for name, parameter in model.named_parameters():
        state = len(kinds[name])
        layerwise = 4 * _FP32 if config.optimizer.parameter_view == "slices" else 0
        weights = DTYPES[config.engine.precision].itemsize if config.engine.precision != "fp32" else 0
        moved += parameter.numel() * (4 * _FP32 + 2 * state * _FP32 + layerwise + weights)
    return {Operation(UPDATE, OTHER, "update", torch.float32, 0, moved // _UPDATE_OPERATIONS): _UPDATE_OPERATIONS}
