"""The work of a rank in a training step: matrix products, bytes read and written, and number of operations.

On the meta device it is counted at any size in about a second, on the branches that an accelerator takes. The CPU's
branches depend on values, so there a small micro-batch runs in earnest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from xlpretrain import distributed
from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine import PlainConfig
from xlpretrain.engine.base import Engine
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.planning.device_work import NO_KERNEL, AsOnCuda, Operations
from xlpretrain.planning.example import example_batch

LAYERS, LOSS, UPDATE = "layers", "loss", "update"
"""Parts of a step: embedding and layers, forward and backward; head and loss, the same; the optimizer's update."""
PRODUCT, ATTENTION, OTHER = "product", "attention", "other"
"""Kinds of operations: matrix products, fused attention, and all others, which read and write memory."""
_FLOPS = {packet.__name__: count for packet, count in flop_registry.items() if hasattr(packet, "__name__")}
CPU, META = "cpu", "meta"


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
    """The work of a rank: that of a micro-batch, forward and backward, and that of an update."""

    micro_batch: Mapping[Operation, float]
    update: Mapping[Operation, float]
    num_micro_batches: int
    num_parameters: int

    @property
    def step(self) -> Counter[Operation]:
        """The operations of a whole step."""
        total: Counter[Operation] = Counter()
        for operation, count in self.micro_batch.items():
            total[operation] += count * self.num_micro_batches  # type: ignore[assignment]
        for operation, count in self.update.items():
            total[operation] += count  # type: ignore[assignment]
        return total


class WorkCounter(Operations):
    """Counts operations on one type of device, with their FLOPs and bytes, by part of the step."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.operations: Counter[Operation] = Counter()
        self.num_views = 0
        self.part = LAYERS
        self._device = device

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        result = function(*args, **given)
        packet = function.overloadpacket
        tensors = [
            value for value in torch.utils._pytree.tree_leaves((args, given, result)) if isinstance(value, Tensor)
        ]
        on_device = any(tensor.device.type == self._device for tensor in tensors)
        if packet.__name__ not in NO_KERNEL and on_device:
            count = _FLOPS.get(packet.__name__.rstrip("_"))  # an operation in place has the same
            given.pop("out", None)
            flops = 0 if count is None else int(count(*args, **given, out_val=result))
            kind = OTHER if not flops else ATTENTION if _is_attention(packet.__name__, self._device) else PRODUCT
            self._record(kind, packet.__name__, tensors, flops)
        return result

    def add(self, name: str, tensors: Any) -> None:
        """Count fused attention, forward or backward, on these tensors: query, key and value first."""
        query, key, value, *_ = tensors = list(tensors)
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        products = 2.0 if name == "fused_attention" else 5.0  # scores again, and the gradients of all three factors
        width = (query.shape[-1] + value.shape[-1]) / 2
        self._record(ATTENTION, name, tensors, int(2 * products * scores * width))

    def _record(self, kind: str, name: str, tensors: list[Tensor], flops: int) -> None:
        distinct = {id(tensor): tensor for tensor in tensors}.values()
        moved = sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in distinct)
        self.operations[Operation(self.part, kind, name, tensors[-1].dtype, flops, moved)] += 1


def _is_attention(name: str, device: str) -> bool:
    """True for products of attention: on a CPU the batched ones, which are its tiles."""
    return "attention" in name or (device == CPU and "bmm" in name)


def work_of(config: RunConfig, *, vocab_size: int, num_ranks: int, device: str) -> Work:
    """Count the work of the rank with the most samples, in the first micro-batch of a step.

    device: "meta" for an accelerator, or "cpu". Raises `XLPretrainError` if the config cannot run.
    """
    parts = distributed.micro_batches(
        0, num_ranks, num_streams=config.global_batch_size, micro_batch_size=config.micro_batch_size
    )
    largest = math.ceil(math.ceil(config.global_batch_size / num_ranks) / len(parts))
    with single_process():
        engine = _engine(config, vocab_size, device)
        size = sum(parameter.numel() for parameter in engine.model.parameters())
        if device == META:
            work = _count(config, engine, vocab_size, num_samples=largest, device=device)
        else:
            work = _extrapolated(config, engine, vocab_size, num_samples=largest)
    return Work(*work, num_micro_batches=len(parts), num_parameters=size)


def _engine(config: RunConfig, vocab_size: int, device: str) -> Engine:
    """The plain engine with the settings of the config's: the work on a device is that of any engine."""
    settings = {key: getattr(config.engine, key) for key in ("precision", "grad_dtype", "activation_checkpointing")}
    with torch.device(META):
        model = config.build_model(vocab_size)
    if device == CPU:  # numbers do not matter, and random ones take time
        model.to_empty(device=CPU)
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data.fill_(0.01)
    return PlainConfig(**settings).build(
        model,
        config.optimizer,
        num_micro_batches=2,
        weights=config.objective.weights,
        device=torch.device(device),
    )


def _count(
    config: RunConfig, engine: Engine, vocab_size: int, *, num_samples: int, device: str
) -> tuple[Counter[Operation], Counter[Operation]]:
    model = engine.model
    batch = example_batch(config, vocab_size=vocab_size, num_samples=num_samples, backbone=model.backbone)
    batch = batch.to(torch.device(device))
    mems = model.backbone.empty_memory(num_samples, config.model.mem_len)
    engine.start_step(batch.counts)
    with counting(device) as micro_batch, parts_by_module(model, micro_batch):
        loss, _ = engine.forward(batch, mems)
        micro_batch.part = LOSS  # until the backward pass reaches the layers
        engine.backward(loss)
    if device == CPU:
        micro_batch.operations[Operation(LAYERS, OTHER, "views", torch.float32, 0, 0)] = micro_batch.num_views
    engine.update(1e-5)  # the first one makes the optimizer's state
    with counting(device) as update:
        update.part = UPDATE
        engine.update(1e-5)
    return micro_batch.operations, update.operations


def _extrapolated(
    config: RunConfig, engine: Engine, vocab_size: int, *, num_samples: int
) -> tuple[Counter[Operation], Counter[Operation]]:
    """Count one and two samples on the CPU, and extend the difference: each sample adds the same work."""
    one, update = _count(config, engine, vocab_size, num_samples=1, device=CPU)
    if num_samples == 1:
        return one, update
    two, _ = _count(config, engine, vocab_size, num_samples=2, device=CPU)
    first, second = _totals(one), _totals(two)
    found: Counter[Operation] = Counter()
    for kind in first | second:
        here, there = first.get(kind, (0, 0, 0)), second.get(kind, (0, 0, 0))
        count, flops, moved = (max(0, a + (num_samples - 1) * (b - a)) for a, b in zip(here, there, strict=True))
        if count:
            found[Operation(*kind, flops // count, moved // count)] += count
    return found, update


def _totals(operations: Mapping[Operation, int]) -> dict[tuple[Any, ...], tuple[int, int, int]]:
    """Number, FLOPs and bytes of the operations of each kind."""
    found: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    for operation, count in operations.items():
        *kind, flops, moved = operation
        before = found.get(tuple(kind), (0, 0, 0))
        found[tuple(kind)] = (before[0] + count, before[1] + count * flops, before[2] + count * moved)
    return found


@contextmanager
def counting(device: str) -> Iterator[WorkCounter]:
    """Count the operations of a block."""
    with WorkCounter(device) as operations, AsOnCuda() if device == META else nullcontext():
        yield operations


@contextmanager
def parts_by_module(model: PretrainingModel, counter: WorkCounter) -> Iterator[None]:
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
        counter.part = LAYERS


@contextmanager
def single_process() -> Iterator[None]:
    """A process group of one process, for CPU tensors and for those of the meta device, unless there is a group."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
