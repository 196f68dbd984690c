"""Data sheets of GPUs, and the speed of this machine's CPUs, measured in about a second.

Peaks are dense, without sparsity. Rates between devices are those of one direction. A node's rate is that of all its
network adapters together, in the vendor's own machine (DGX, HGX) or, for cards that are sold singly, one of 100 Gbit/s.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from xlpretrain.errors import ConfigError

CPU = "cpu"
_GBIT = 1e9 / 8
_TERA, _GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """The capabilities of a device: rates in FLOP/s and bytes/s, sizes in bytes, times in seconds."""

    name: str
    peak_flops: Mapping[str, float]
    """Matrix products, by data type: bf16, fp16, tf32 and fp32; a missing type is computed as fp32."""
    memory_bytes: float
    memory_rate: float
    link_rate: float
    """From one device to another in the same node."""
    node_rate: float
    """From one node to another."""
    product_share: float = 0.60
    """Share of the peak that matrix products reach."""
    attention_share: float = 0.25
    """Share of the peak that attention reaches, which is not only products."""
    memory_share: float = 0.55
    """Share of the memory's rate that other operations reach."""
    link_share: float = 0.75
    """Share of the rates between devices that collectives reach."""
    launch_s: float = 6e-6
    """The host's time for an operation in eager code."""
    collective_s: float = 30e-6
    """Time of a collective operation beside that of its bytes."""
    is_asynchronous: bool = True
    """True if the host prepares operations while the device works on earlier ones."""
    slow_memory_rate: float = 0.0
    """Rate of exponentials, normalizations and the like; 0: that of the memory."""

    def flops(self, dtype: str) -> float:
        """Peak FLOP/s of products of a data type."""
        return self.peak_flops.get(dtype, self.peak_flops["fp32"])

    def rate(self, num_devices: int, per_node: int) -> float:
        """Bytes per second that each rank of a ring sends: the slower of the rates inside and between nodes."""
        link = self.link_rate if num_devices <= per_node else min(self.link_rate, self.node_rate)
        return link * self.link_share


def _gpu(
    name: str, *, bf16: float = 0, fp16: float = 0, tf32: float = 0, fp32: float, gb: float, gb_s: float,
    link: float, node_gbit: float,
) -> Device:  # fmt: skip
    """A data sheet in its own units: TFLOP/s, GB, GB/s, and Gbit/s for a node."""
    peaks = {"bf16": bf16, "fp16": fp16 or bf16, "tf32": tf32, "fp32": fp32}
    return Device(
        name,
        peak_flops={dtype: peak * _TERA for dtype, peak in peaks.items() if peak},
        memory_bytes=gb * _GIGA,
        memory_rate=gb_s * _GIGA,
        link_rate=link * _GIGA,
        node_rate=node_gbit * _GBIT,
    )


DEVICES: dict[str, Device] = {
    # NVIDIA A100 Tensor Core GPU data sheet (2022), SXM: NVLink 600 GB/s in both directions; DGX A100: 8 x 200 Gbit/s.
    "a100": _gpu("A100 80 GB", bf16=312, tf32=156, fp32=19.5, gb=80, gb_s=2039, link=300, node_gbit=1600),
    # The first version of the same data sheet (2020), SXM, 40 GB.
    "a100-40": _gpu("A100 40 GB", bf16=312, tf32=156, fp32=19.5, gb=40, gb_s=1555, link=300, node_gbit=1600),
    # NVIDIA H100 Tensor Core GPU data sheet (2024), SXM, halves of the figures with sparsity; DGX H100: 8 x 400 Gbit/s.
    "h100": _gpu("H100 SXM", bf16=989, tf32=494, fp32=67, gb=80, gb_s=3350, link=450, node_gbit=3200),
    # NVIDIA H100 PCIe product brief (2022): PCIe 5.0 x16 (128 GB/s in both directions), without the NVLink bridge.
    "h100-pcie": _gpu("H100 PCIe", bf16=756, tf32=378, fp32=51, gb=80, gb_s=2000, link=64, node_gbit=100),
    # NVIDIA H200 Tensor Core GPU data sheet (2024), SXM; DGX H200: 8 x 400 Gbit/s.
    "h200": _gpu("H200 SXM", bf16=989, tf32=494, fp32=67, gb=141, gb_s=4800, link=450, node_gbit=3200),
    # NVIDIA DGX B200 data sheet (2024), an eighth of it: 18 PFLOP/s in bf16 dense, 1,440 GB, 64 TB/s, NVLink 14.4 TB/s;
    # 8 x 400 Gbit/s.
    "b200": _gpu("B200", bf16=2250, tf32=1125, fp32=75, gb=180, gb_s=8000, link=900, node_gbit=3200),
    # NVIDIA L40S data sheet (2023): PCIe 4.0 x16 (64 GB/s in both directions).
    "l40s": _gpu("L40S", bf16=362, tf32=183, fp32=91.6, gb=48, gb_s=864, link=32, node_gbit=100),
    # NVIDIA L4 data sheet (2023), halves of the figures with sparsity: PCIe 4.0 x16.
    "l4": _gpu("L4", bf16=121, tf32=60, fp32=30.3, gb=24, gb_s=300, link=32, node_gbit=100),
    # NVIDIA A10 data sheet (2021): PCIe 4.0 x16.
    "a10": _gpu("A10", bf16=125, tf32=62.5, fp32=31.2, gb=24, gb_s=600, link=32, node_gbit=100),
    # NVIDIA Ada GPU architecture white paper (2023), table 2, products added in fp32: PCIe 4.0 x16.
    "rtx4090": _gpu("RTX 4090", bf16=165.2, tf32=82.6, fp32=82.6, gb=24, gb_s=1008, link=32, node_gbit=100),
    # NVIDIA V100 data sheet (2020), SXM2: NVLink 300 GB/s in both directions; DGX-2: 8 x 100 Gbit/s. No bf16 units.
    "v100": _gpu("V100 32 GB", fp16=125, fp32=15.7, gb=32, gb_s=900, link=150, node_gbit=800),
    # The same data sheet, 16 GB; DGX-1: 4 x 100 Gbit/s.
    "v100-16": _gpu("V100 16 GB", fp16=125, fp32=15.7, gb=16, gb_s=900, link=150, node_gbit=400),
    # NVIDIA T4 data sheet (2019): PCIe 3.0 x16 (32 GB/s in both directions). No bf16 units.
    "t4": _gpu("T4", fp16=65, fp32=8.1, gb=16, gb_s=320, link=16, node_gbit=100),
}
"""GPUs by the name that `--device` takes."""

_MARKETED = {
    "h100-pcie": ("H100 PCIe",),
    "h100": ("H100",),
    "h200": ("H200",),
    "b200": ("B200",),
    "a100-40": ("A100-SXM4-40GB", "A100-PCIE-40GB"),
    "a100": ("A100",),
    "l40s": ("L40S",),
    "l4": ("L4",),
    "a10": ("A10",),
    "rtx4090": ("RTX 4090",),
    "v100-16": ("V100-SXM2-16GB", "V100-PCIE-16GB"),
    "v100": ("V100",),
    "t4": ("T4",),
}
"""What the driver calls them, the more exact names first."""


def device_named(name: str, *, num_ranks: int = 1) -> Device:
    """The device of a name; the CPU is measured. num_ranks: ranks that share this machine's CPUs.

    Raises `ConfigError` that lists the known names.
    """
    if name.lower() == CPU:
        return measured_cpu(num_ranks=num_ranks)
    if name.lower() not in DEVICES:
        raise ConfigError(f"--device: must be one of {', '.join([*DEVICES, CPU])}, got {name!r}")
    return DEVICES[name.lower()]


def find_device(text: str) -> str | None:
    """The name of the device that a text names: the driver's, or a cluster's, such as gpu:h100:8. None if unknown."""
    for name, called in _MARKETED.items():
        pattern = "|".join(re.escape(each.upper()) for each in called)
        if re.search(rf"(?<![A-Z0-9])({pattern})(?![A-Z0-9])", text.upper().replace("_", "-")):
            return name
    return None


def here() -> str:
    """The name of this machine's device. Raises `ConfigError` if it is a GPU without a data sheet here."""
    if not torch.cuda.is_available():
        return CPU
    called = torch.cuda.get_device_name()
    if (name := find_device(called)) is None:
        raise ConfigError(f"--device: {called} is not among {', '.join(DEVICES)}; name the one that is most like it")
    return name


def measured_cpu(*, num_ranks: int = 1) -> Device:
    """Measure this machine's CPUs, with the threads that one of its ranks gets, while no other rank runs.

    A large and a batched product, two passes over memory, and the overhead of an operation; processor time, so that
    other processes disturb it little. Takes about a second.
    """
    cores = len(os.sched_getaffinity(0))
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // num_ranks))
    try:
        return _measured_cpu(f"CPU ({cores} cores)", memory_bytes=_memory_bytes() / num_ranks)
    finally:
        torch.set_num_threads(before)


def _measured_cpu(name: str, *, memory_bytes: float) -> Device:
    peaks, tiles = {}, {}
    for dtype_name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        tall, wide = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        peaks[dtype_name] = 2 * 1024 * 256 * 1024 / _best_s(partial(torch.mm, tall, wide))
        # A tile of attention: the heads of a sample lie side by side.
        queries, keys = torch.ones(128, 8, 64, dtype=dtype), torch.ones(256, 8, 64, dtype=dtype)
        tile = partial(torch.bmm, queries.transpose(0, 1), keys.permute(1, 2, 0))
        tiles[dtype_name] = 2 * 8 * 128 * 64 * 256 / _best_s(tile)
    values = torch.ones(4096, 1024, dtype=torch.bfloat16)
    moved = 2 * values.nbytes
    small = torch.ones(8, requires_grad=True)
    return Device(
        name,
        peak_flops=peaks,
        memory_bytes=memory_bytes,
        memory_rate=moved / _best_s(lambda: values * 2.0),
        slow_memory_rate=moved / _best_s(lambda: torch.softmax(values, dim=-1)),
        link_rate=1.5e9,
        node_rate=100 * _GBIT,
        # What a step reaches of what a loop over one operation does, whose tensors are in the cache: found with the
        # small models and BERT base on one machine (docs/planning.md).
        product_share=0.82,
        attention_share=0.57 * tiles["bf16"] / peaks["bf16"],
        memory_share=0.67,
        link_share=1.0,
        launch_s=2 * _best_s(lambda: small + 1, calls=200),  # modules and hooks take as long
        collective_s=5e-4,
        is_asynchronous=False,
    )


def _best_s(call: Callable[[], object], *, calls: int = 4) -> float:
    """Seconds of processor time per call and thread: the best of several."""
    call()
    found = []
    for _ in range(7):
        started = time.process_time()
        for _ in range(calls):
            call()
        found.append((time.process_time() - started) / calls / torch.get_num_threads())
    return min(found)


def _memory_bytes() -> float:
    """Memory of this machine, or of its control group if that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:  # noqa: PTH123
            return float(min(total, int(file.read())))
    except (OSError, ValueError):
        return float(total)
