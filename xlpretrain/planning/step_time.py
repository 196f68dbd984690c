"""The time of a training step by part, from its work and a device's rates.

An operation takes as long as its FLOPs or its bytes need, whichever is longer. The host prepares the operations of a
GPU meanwhile, so a step takes the longer of both; on a CPU they take turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from xlpretrain.planning.collectives import Exchange
from xlpretrain.planning.devices import Device
from xlpretrain.planning.work import ATTENTION, LOSS, PRODUCT, UPDATE, Operation, Work

PRODUCTS, TRAFFIC, LAUNCHES, NETWORK = "matrix products", "memory traffic", "launches", "network"
"""What can bound a step."""
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_SLOW = ("softmax", "gelu", "exp", "norm", "tanh", "sigmoid", "erf")
"""Parts of names of operations that compute more than they move, on a CPU."""
_SHORTEST_S = 2e-6
"""Time of the shortest kernel."""
_BACKWARD = 2 / 3
"""Share of a micro-batch's time that its backward pass takes."""


@dataclass(frozen=True)
class StepTime:
    """The time of a step in seconds.

    parts: matrix products, attention, memory traffic, loss, optimizer, network, launches; they add up to `seconds`.
    by_bound: the same seconds by what bounds them.
    """

    parts: Mapping[str, float]
    by_bound: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Time of the step."""
        return sum(self.parts.values())

    @property
    def bound(self) -> str:
        """The part that takes most of the time."""
        return max(self.by_bound, key=lambda name: self.by_bound[name])


def step_time(
    work: Work,
    device: Device,
    exchanges: Sequence[Exchange] = (),
    *,
    num_ranks: int = 1,
    per_node: int = 1,
    update_shards: int = 1,
    product_dtype: str | None = None,
) -> StepTime:
    """The time of a step of one rank.

    Args:
        update_shards: number of ranks that share the optimizer's update.
        product_dtype: data type of products in place of their own: tf32, or fp16 in place of bf16.
    """
    parts: Counter[str] = Counter()
    bounds: Counter[str] = Counter()
    num_operations = 0.0
    for operation, count in work.step.items():
        if operation.name == "view":  # only the host's work, which on a GPU is less than a launch
            num_operations += 0 if device.is_asynchronous else count
            continue
        share = 1 / update_shards if operation.part == UPDATE else 1.0
        seconds, bound = _operation_s(operation, device, product_dtype, share=share)
        parts[_part(operation)] += seconds * count  # type: ignore[assignment]
        bounds[bound] += seconds * count  # type: ignore[assignment]
        num_operations += count
    computed, host = sum(parts.values()), num_operations * device.launch_s
    waiting = max(0.0, host - computed) if device.is_asynchronous else host
    backward = _BACKWARD * sum(seconds for part, seconds in parts.items() if part != "optimizer")
    network = exposed_s(exchanges, device, num_ranks=num_ranks, per_node=per_node, backward_s=backward)
    found = {**parts, LAUNCHES: waiting, NETWORK: network}
    return StepTime(found, {**bounds, LAUNCHES: waiting, NETWORK: network})


def exposed_s(
    exchanges: Sequence[Exchange], device: Device, *, num_ranks: int, per_node: int, backward_s: float
) -> float:
    """Seconds of the collectives that the backward pass does not hide."""
    rate = device.rate(num_ranks, per_node)
    seconds = {
        True: 0.0,
        False: 0.0,
    }
    for each in exchanges:
        seconds[each.overlaps] += each.sent_bytes / rate + each.num_calls * device.collective_s
    return seconds[False] + max(0.0, seconds[True] - backward_s)


def _operation_s(operation: Operation, device: Device, product_dtype: str | None, *, share: float) -> tuple[float, str]:
    """Seconds of an operation on a share of its tensors, and what bounds them."""
    rate = device.memory_rate
    if device.slow_memory_rate and any(word in operation.name for word in _SLOW):
        rate = device.slow_memory_rate
    traffic = share * operation.num_bytes / (rate * device.memory_share)
    if not operation.flops:
        return max(traffic, _SHORTEST_S if device.is_asynchronous else 0.0), TRAFFIC
    reached = device.attention_share if operation.kind == ATTENTION else device.product_share
    dtype = product_dtype or _NAMES.get(operation.dtype, "fp32")
    products = share * operation.flops / (device.flops(dtype) * reached)
    if products >= traffic or not device.is_asynchronous:
        return products, PRODUCTS
    return traffic, TRAFFIC


def _part(operation: Operation) -> str:
    if operation.part == LOSS:
        return "loss"
    if operation.part == UPDATE:
        return "optimizer"
    return {PRODUCT: PRODUCTS, ATTENTION: "attention"}.get(operation.kind, TRAFFIC)
