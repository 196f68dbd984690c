"""Bytes of a rank's training state: what each engine and ZeRO stage holds, and what its steps take for a moment.

Sizes are those of DeepSpeed 0.19.8 (`runtime/zero/stage_1_and_2.py`, `stage3.py`) and of `engine/plain.py`. Shapes: P
parameters, N ranks; a parameter of several modules counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine.config import DTYPES, DeepSpeedConfig, options_on_gpus
from xlpretrain.optim import LambConfig, MuonConfig
from xlpretrain.planning.activations import DeviceKind

FP32 = 4
_BUCKET = _LARGEST_LIVE = 500_000_000
"""Elements of a bucket by DeepSpeed's default, and half of those that stage 3 keeps gathered (`max_reuse_distance`)."""


@dataclass(frozen=True)
class StateMemory:
    """Bytes of the training state of one rank.

    Attributes:
        held: by part, during the whole run.
        gathered: whole weights that stage 3 holds during a pass.
        held_gradient: bytes per element that a gradient takes from its computation to the end of the pass.
        accumulates: True if these bytes stay until the last micro-batch of the step, False if each pass reduces them.
        elements: number of elements with a gradient.
        reduction: at the end of a pass, when gradients are reduced, in addition to held gradients.
        update: temporary, in the update.
        setup: while the engine is built; then nothing else is there.
        saved: copied on the host at each save: a share of the weights in fp32 and of the optimizer's state, by any
            engine (`Partition.ranges`).
        untouched: reserved in address space but never written, which limits of address space count.
    """

    held: Mapping[str, int]
    gathered: int
    held_gradient: int
    accumulates: bool
    elements: int
    reduction: int
    update: int
    setup: int
    saved: int
    untouched: int


@dataclass(frozen=True)
class _Sizes:
    """Sizes that all engines need. total: elements of all parameters, frozen ones too; largest: elements of the largest
    parameter; groups: elements of optimizer groups; state: bytes of optimizer state; step: bytes of the optimizer's
    temporary tensors if nothing is sharded."""

    total: int
    largest: int
    groups: Sequence[int]
    state: int
    step: int
    weight: int
    gradient: int

    @property
    def largest_group(self) -> int:
        return max(self.groups, default=0)

    @property
    def elements(self) -> int:
        return sum(self.groups)

    @property
    def saved(self) -> int:
        return FP32 * self.total + self.state


def state_memory(config: RunConfig, model: nn.Module, *, num_ranks: int, device: DeviceKind) -> StateMemory:
    """The state of one rank. model: the run's, on any device, also without values."""
    sizes = _sizes(config, model)
    engine = config.engine
    if not isinstance(engine, DeepSpeedConfig):
        return _plain(sizes, num_ranks)
    options = dict(options_on_gpus(engine.actual_stage, num_ranks=num_ranks)) if device == "cuda" else {}
    options |= engine.deepspeed.get("zero_optimization", {})
    if engine.actual_stage == 0:
        return _stage_0(sizes, num_ranks)
    if engine.actual_stage == 3:
        return _stage_3(sizes, num_ranks, options, device)
    return _stage_1_2(sizes, num_ranks, options, device, stage=engine.actual_stage)


def _sizes(config: RunConfig, model: nn.Module) -> _Sizes:
    groups = config.optimizer.parameter_groups(dict(model.named_parameters()))
    in_groups = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    step = 0
    if isinstance(config.optimizer, LambConfig):  # `Lamb.step`: a step of the size of each group of matrices
        step = FP32 * max((n for n, g in zip(in_groups, groups, strict=True) if g["params"][0].ndim > 1), default=0)
    elif isinstance(config.optimizer, MuonConfig):
        step = _step_of_muon(config.optimizer, groups, is_sliced=config.engine.slices_parameters)
    return _Sizes(
        total=sum(parameter.numel() for parameter in model.parameters()),
        largest=max((parameter.numel() for parameter in model.parameters()), default=0),
        groups=in_groups,
        state=FP32 * sum(len(group["state_keys"]) * n for n, group in zip(in_groups, groups, strict=True)),
        step=step,
        weight=DTYPES[config.engine.precision].itemsize,
        gradient=DTYPES[config.engine.grad_dtype].itemsize,
    )


def _step_of_muon(optimizer: MuonConfig, groups: Sequence[Mapping[str, Any]], *, is_sliced: bool) -> int:
    """`Muon.step`: the momentum and its copy in the data type of the iteration, of a whole group if it is sliced (then
    with two buffers to send), else of one parameter; and four tensors of a matrix in the iteration."""
    matrices: list[list[int]] = [
        [p.numel() for p in group["params"]] for group in groups if group["state_keys"] == ("momentum_buffer",)
    ]
    itemsize = DTYPES[optimizer.orthogonalize_in].itemsize
    largest = max(max(sizes) for sizes in matrices)
    if not is_sliced:
        return (FP32 + 5 * itemsize) * largest
    return (FP32 + 3 * itemsize) * max(sum(sizes) for sizes in matrices) + 4 * itemsize * largest


def _plain(sizes: _Sizes, num_ranks: int) -> StateMemory:
    """`PlainEngine`: everything on each rank; a flat gradient, which the update reads in fp32."""
    is_mixed = sizes.weight != FP32
    return StateMemory(
        held={
            "weights": sizes.weight * sizes.total,
            "master weights": FP32 * sizes.total if is_mixed else 0,
            "gradients": sizes.gradient * sizes.elements,
            "optimizer state": sizes.state,
        },
        gathered=0,
        held_gradient=0,
        accumulates=False,
        elements=sizes.elements,
        reduction=0,
        update=(FP32 * sizes.elements if sizes.gradient != FP32 else 0) + sizes.step,
        setup=FP32 * sizes.total * (2 if is_mixed else 1),
        saved=sizes.saved // num_ranks,
        untouched=0,
    )


def _stage_0(sizes: _Sizes, num_ranks: int) -> StateMemory:
    """DeepSpeed without ZeRO, in fp32: gradients stay with their parameters and are reduced in copies of buckets."""
    return StateMemory(
        held={
            "weights": FP32 * sizes.total,
            "master weights": 0,
            "optimizer state": sizes.state,
        },
        gathered=0,
        held_gradient=FP32,
        accumulates=True,
        elements=sizes.elements,
        reduction=FP32 * min(sizes.elements, _BUCKET),
        update=sizes.step,
        setup=FP32 * sizes.total,
        saved=sizes.saved // num_ranks,
        untouched=0,
    )


def _stage_1_2(
    sizes: _Sizes, num_ranks: int, options: Mapping[str, Any], device: DeviceKind, *, stage: int
) -> StateMemory:
    """`DeepSpeedZeroOptimizer`: whole weights in one flat tensor per group, a share of masters and their state.

    Stage 2 copies gradients into a bucket and reduces them into this rank's share, which it keeps in fp32 if that is
    not the weights' type. Stage 1 keeps whole gradients until the last pass of a step, and then does the same. A bucket
    is reduced in a copy (`reduce_scatter`), or converted (without), and all buffers of a pass are made anew.
    """
    padded = sum(_whole(group, 2 * num_ranks) for group in sizes.groups)
    share, shares_gradient = padded // num_ranks, sizes.weight != sizes.gradient
    staging = sizes.weight if stage == 2 else sizes.gradient
    bucket = int(options.get("reduce_bucket_size", _BUCKET))
    num_buffers = 2 if options.get("overlap_comm") else 1
    filled, whole = min(padded, bucket), bucket * staging * num_buffers
    converted = sizes.gradient * filled if sizes.gradient != staging else 0
    copied = staging * filled if options.get("reduce_scatter", True) else 0
    gradients = FP32 * share if shares_gradient else sizes.gradient * share
    return StateMemory(
        held={
            "weights": sizes.weight * (padded + sizes.total - sizes.elements),
            "master weights": FP32 * share,
            "gradients": gradients if stage == 2 else 0,
            "optimizer state": sizes.state // num_ranks,
            "ZeRO buckets": whole if device == "cuda" or padded > bucket else 0,
        },
        gathered=0,
        held_gradient=staging if stage == 1 or (device == "cpu" and padded <= bucket) else 0,
        accumulates=stage == 1,
        elements=sizes.elements,
        reduction=copied + converted + (0 if stage == 2 or device == "cuda" else gradients),
        update=max(
            8 * min(sizes.largest, share),  # the norm of a gradient, in float64
            sizes.step // num_ranks + (0 if shares_gradient else FP32 * _whole(sizes.largest_group, 1) // num_ranks),
        ),
        setup=FP32 * sizes.total + sizes.weight * sizes.largest_group,
        saved=sizes.saved // num_ranks,
        untouched=whole - staging * filled if device == "cpu" else 0,
    )


def _stage_3(sizes: _Sizes, num_ranks: int, options: Mapping[str, Any], device: DeviceKind) -> StateMemory:
    """`DeepSpeedZeroOptimizer_Stage3`: shares of everything, and one bucket for the whole run.

    Weights that are gathered for the forward pass stay so until the backward pass has used them, unless others of more
    than `stage3_max_reuse_distance` elements are used in between. A bucket is reduced in fp32, in two copies.
    """
    share = -(-sizes.elements // num_ranks)
    bucket = int(options.get("reduce_bucket_size", _BUCKET))
    filled = min(sizes.elements, bucket)
    reuse = int(options.get("stage3_max_reuse_distance", 2 * _LARGEST_LIVE)) // 2
    live = int(options.get("stage3_max_live_parameters", 2 * _LARGEST_LIVE))
    in_bucket = sizes.gradient * (bucket if device == "cuda" else filled)
    return StateMemory(
        held={
            "weights": sizes.weight * -(-sizes.total // num_ranks),
            "master weights": FP32 * share if sizes.weight != FP32 else 0,
            "gradients": sizes.gradient * share,
            "optimizer state": sizes.state // num_ranks,
            "ZeRO buckets": in_bucket,
        },
        gathered=sizes.weight * max(min(sizes.total, reuse, live), sizes.largest),
        held_gradient=0,
        accumulates=False,
        elements=sizes.elements,
        reduction=sizes.gradient * filled * (2 if sizes.weight != sizes.gradient else 1),
        update=FP32 * -(-sizes.largest_group // num_ranks) + sizes.step // num_ranks,
        setup=FP32 * sizes.total,
        saved=sizes.saved // num_ranks,
        untouched=sizes.gradient * (bucket - filled) if device == "cpu" else 0,
    )


def _whole(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
