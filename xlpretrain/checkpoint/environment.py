"""The environment of a checkpoint: everything that decides whether a resume is bit-identical."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

from xlpretrain import distributed
from xlpretrain.engine.base import Engine
from xlpretrain.version import __version__, version_of


def layout(engine: Engine) -> dict[str, Any]:
    """Facts that must be equal for a bit-identical resume."""
    return {
        "world_size": distributed.world_size(),
        **engine.layout,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "device": _device_name(engine.device),
        "torch": torch.__version__,
        "numpy": version_of("numpy"),  # generates data order, masks and factorization orders
        "deepspeed": None,
        **{name: version_of(name) for name in engine.libraries},
        "xlpretrain": __version__,
    }


@cache
def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
