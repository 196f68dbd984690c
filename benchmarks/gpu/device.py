"""Part `device`: what runs here, and how fast its matrix products are. Also the timing that the other parts use."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu.record import Record

PACKAGES = ("torch", "triton", "transformers", "deepspeed", "pydantic", "numpy", "safetensors", "wandb")
DENSE_FLOPS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def run(record: Record, *, toy: bool) -> None:
    """Record device and versions, then the peaks, without and with TF32."""
    facts: dict[str, Any] = {"device": name(), "python": platform.python_version(), "cores": _cores()}
    facts |= {package: _version(package) for package in PACKAGES}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "multiprocessors": properties.multi_processor_count,
            "driver": _nvidia_smi("driver_version"),
            "clock limit": _nvidia_smi("clocks.max.sm"),
            "power limit": _nvidia_smi("power.limit"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    for key, value in facts.items():
        record.row("Versions", what=key, value=value)
    for precision in DENSE_FLOPS:
        record.row("Matrix products", precision=precision, TFLOPs=peak(precision, toy=toy) / 1e12)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        record.row("Matrix products", precision="fp32, TF32 allowed", TFLOPs=peak("fp32", toy=toy) / 1e12)


def name() -> str:
    """Name of the device that the parts run on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"


def device() -> torch.device:
    """The device that the parts run on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak(precision: str, *, toy: bool = False) -> float:
    """Measured FLOP/s of a large matrix product: the best of several."""
    size = 512 if toy else 8192
    a, b = (torch.randn(size, size, dtype=DENSE_FLOPS[precision], device=device()) for _ in range(2))
    return 2 * size**3 / min(times_s({"product": lambda: torch.mm(a, b)}, repeats=10, warmup=3)["product"])


def times_s(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1, between: Callable[[str], object] = id
) -> dict[str, list[float]]:
    """Seconds of each call, taking turns, so that disturbances affect all: by CUDA events, or the clock on a CPU.

    between: called with the name after each timed call.
    """
    found: dict[str, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        for _ in range(warmup):
            call()
    for _ in range(repeats):
        for key, call in calls.items():
            found[key].append(_time_s(call))
            between(key)
    return found


def _time_s(call: Callable[[], object]) -> float:
    if not torch.cuda.is_available():
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1000


def median_ms(times: Sequence[float]) -> float:
    """Median in milliseconds."""
    return 1000 * statistics.median(times)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _nvidia_smi(field: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except OSError:
        return "unknown"


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))
