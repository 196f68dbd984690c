"""Meters of speed and memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field

import torch

from xlpretrain.planning.devices import DEVICES, find_device
from xlpretrain.tracking.metrics_file import Metrics


@dataclass
class StepTimer:
    """Wall time since the last `lap`, and the part of it spent waiting for data."""

    started_at: float = field(default_factory=time.perf_counter)
    steps: int = 0
    data_wait_s: float = 0.0

    def lap(self, *, tokens_per_step: int, flops_per_token: float, peak_flops: float) -> Metrics:
        """Rates per step since the last lap; resets the timer. `peak_flops`: total over all ranks."""
        elapsed = max(time.perf_counter() - self.started_at, 1e-9)
        steps = max(self.steps, 1)
        tokens_per_second = self.steps * tokens_per_step / elapsed
        lap: Metrics = {
            "time/step_s": elapsed / steps,
            "time/data_wait_s": self.data_wait_s / steps,
            "time/tokens_per_second": tokens_per_second,
            "time/mfu": tokens_per_second * flops_per_token / peak_flops,
        }
        self.started_at, self.steps, self.data_wait_s = time.perf_counter(), 0, 0.0
        return lap


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: allocated on the GPU if there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def data_sheet_flops(name: str) -> float | None:
    """Dense bf16 peak of a GPU by its driver's name, in FLOP/s, else its fp16 peak; None if it is not known."""
    known = find_device(name)
    return None if known is None else DEVICES[known].flops("fp16")  # both are the same where there are both


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak matrix-product FLOP/s of this rank: from the data sheet for a known GPU (bf16), else measured once."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = data_sheet_flops(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
