"""The time of operations on a device of round numbers, by hand."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.planning.collectives import Exchange
from xlpretrain.planning.devices import Device
from xlpretrain.planning.step_time import exposed_s, step_time
from xlpretrain.planning.work import ATTENTION, LAYERS, LOSS, OTHER, PRODUCT, UPDATE, Operation, Work

GPU = Device(
    "round",
    peak_flops={"bf16": 100e12, "fp32": 10e12},
    memory_bytes=1e9,
    memory_rate=1e12,
    link_rate=100e9,
    node_rate=10e9,
    product_share=0.5,
    attention_share=0.25,
    memory_share=0.5,
    link_share=0.5,
    launch_s=1e-6,
    collective_s=1e-3,
)


def op(part: str, kind: str, *, flops: float = 0, moved: float = 0, name: str = "op") -> Operation:
    return Operation(part, kind, name, torch.bfloat16, int(flops), int(moved))


def time_of(*operations: Operation, micro_batches: int = 1, **options: object):
    passes = {each: 1 for each in operations if each.part != UPDATE}
    update = {each: 1 for each in operations if each.part == UPDATE}
    return step_time(Work(passes, update, micro_batches), GPU, **options)


def test_products_reach_a_share_of_the_peak_of_their_type():
    step = time_of(op(LAYERS, PRODUCT, flops=50e9))  # 50 GFLOP at half of 100 TFLOP/s
    assert step.parts["matrix products"] == pytest.approx(1e-3)
    assert step.bound == "matrix products"
    fp32 = time_of(op(LAYERS, PRODUCT, flops=50e9), product_dtype="fp32")
    assert fp32.seconds == pytest.approx(10e-3)


def test_a_product_of_few_flops_waits_for_memory():
    step = time_of(op(LAYERS, PRODUCT, flops=1e9, moved=1e9))  # 0.02 ms of products, 2 ms of memory
    assert step.seconds == pytest.approx(2e-3)
    assert step.bound == "memory traffic"


def test_each_part_has_its_own_line():
    step = time_of(
        op(LAYERS, ATTENTION, flops=25e9),
        op(LAYERS, OTHER, moved=500e6),
        op(LOSS, OTHER, moved=1000e6),
        op(UPDATE, OTHER, moved=500e6),
        micro_batches=2,
        update_shards=5,
    )
    assert {name: round(seconds * 1e3, 6) for name, seconds in step.parts.items() if seconds} == {
        "attention": 2.0,
        "memory traffic": 2.0,
        "loss": 4.0,
        "optimizer": 0.2,
    }


def test_many_small_operations_are_bound_by_launches():
    passes = {op(LAYERS, OTHER, moved=8): 1000}
    slow_host = Work(passes, {}, 1)
    device = GPU.__class__(**{**vars(GPU), "launch_s": 10e-6})
    step = step_time(slow_host, device)
    assert step.seconds == pytest.approx(10e-3)  # the device alone: 1000 kernels of 2 us
    assert step.bound == "launches"


def test_views_cost_a_gpu_nothing_and_a_cpu_their_overhead():
    work = Work({op(LAYERS, OTHER, name="view"): 1000}, {}, 1)
    assert step_time(work, GPU).seconds == 0
    cpu = GPU.__class__(**{**vars(GPU), "is_asynchronous": False})
    assert step_time(work, cpu).seconds == pytest.approx(1e-3)


def test_collectives_hide_behind_the_backward_pass_only_if_they_overlap():
    hidden = [Exchange("a", 50e6, 1, overlaps=True)]  # 1 ms at half of 100 GB/s, and 1 ms for the call
    shown = [Exchange("a", 50e6, 1, overlaps=False)]
    options = {"num_ranks": 2, "per_node": 2}
    assert exposed_s(shown, GPU, backward_s=1.5e-3, **options) == pytest.approx(2e-3)
    assert exposed_s(hidden, GPU, backward_s=1.5e-3, **options) == pytest.approx(0.5e-3)
    assert exposed_s(hidden, GPU, backward_s=9e-3, **options) == 0
    assert exposed_s(shown, GPU, backward_s=0, num_ranks=2, per_node=1) == pytest.approx(11e-3)  # over the network


def test_the_network_can_be_the_bound():
    step = time_of(
        op(LAYERS, OTHER, moved=1e6), exchanges=[Exchange("a", 1e9, 1, overlaps=False)], num_ranks=2, per_node=1
    )
    assert step.bound == "network"
