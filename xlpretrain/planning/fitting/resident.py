"""Measured memory of this process: resident on a CPU, allocated by torch on a GPU; and what is imported before it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import torch

from xlpretrain.engine.config import DeepSpeedConfig, EngineConfig


def import_libraries(engine: EngineConfig) -> None:
    """Import what an engine will import, so that it is not taken for memory of the run."""
    if isinstance(engine, DeepSpeedConfig):
        import torch._dynamo
        import torch._inductor.config  # noqa: F401  # both are imported by `deepspeed.initialize`

        import xlpretrain.engine.zero  # noqa: F401


def start_peak(device: torch.device) -> int:
    """Start measuring the peak anew. Returns the bytes taken now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not everywhere
            Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes(device)


def resident_bytes(device: torch.device, *, peak: bool = False) -> int:
    """Bytes taken now, or at the peak since `start_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) if peak else torch.cuda.memory_reserved(device)
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
