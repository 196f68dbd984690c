"""Data sheets by name, and the measured CPU."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.errors import ConfigError
from xlpretrain.planning.devices import DEVICES, device_named, find_device, measured_cpu


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"--device: must be one of a100, .*t4, cpu, got 'h1000'"):
        device_named("h1000")
    assert device_named("H100") is DEVICES["h100"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A10", "a10"),
        ("Tesla V100-SXM2-16GB", "v100-16"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("gpu:h200:8", "h200"),
        ("gpu:8", None),
        ("gpu", None),
    ],
)
def test_drivers_and_clusters_names_are_found(text: str, name: str | None):
    assert find_device(text) == name


def test_missing_units_compute_as_fp32():
    assert DEVICES["v100"].flops("bf16") == 15.7e12
    assert DEVICES["a100"].flops("fp16") == 312e12


def test_a_ring_is_as_fast_as_its_slowest_link():
    h100 = DEVICES["h100"]  # 450 GB/s to a neighbor, 8 x 400 Gbit/s = 400 GB/s between nodes
    assert h100.rate(8, 8) == 450e9 * h100.link_share
    assert h100.rate(16, 8) == 400e9 * h100.link_share


def test_the_cpu_is_measured_and_its_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    cpu = measured_cpu(num_ranks=2)
    assert torch.get_num_threads() == before
    assert not cpu.is_asynchronous
    assert min(cpu.peak_flops["bf16"], cpu.peak_flops["fp32"], cpu.memory_rate, cpu.slow_memory_rate) > 1e8
    assert cpu.memory_bytes > 2**28
