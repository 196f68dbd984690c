"""Rate of matrix products: on GPUs against the data sheet and each other, on CPUs against one thread and itself."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from launcher.doctor.findings import Finding, passed, warning
from launcher.doctor.request import Request
from xlpretrain.train.throughput import data_sheet_flops

_SHARE_OF_SHEET = 0.55
_SHARE_OF_FASTEST = 0.9
_SHARE_OF_BEST = 0.7
_SHARE_OF_THREADS = 0.5
_REPEATS = 8


def check(request: Request) -> Iterator[Finding]:
    """Measure products on each GPU, or with all cores."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        rates = [max(_rates(torch.device("cuda", n), 8192, torch.bfloat16)) for n in range(len(names))]
        yield from judge_gpus(names, rates)
    else:
        threads = len(os.sched_getaffinity(0))
        one, together = _with_threads(1), _with_threads(threads)
        yield judge_cpu(one, together, threads=threads)


def judge_gpus(names: Sequence[str], rates: Sequence[float]) -> Iterator[Finding]:
    """Judge the rates of bf16 products on each GPU, in FLOP/s."""
    for number, (name, rate) in enumerate(zip(names, rates, strict=True)):
        sheet = data_sheet_flops(name)
        text = f"GPU {number}: {rate / 1e12:.0f} TFLOP/s in bf16 products"
        text += f", {rate / sheet:.0%} of the data sheet" if sheet else f" ({name}: no data sheet known)"
        if sheet and rate < _SHARE_OF_SHEET * sheet:
            yield warning(text, "power or heat (`nvidia-smi -q -d PERFORMANCE`), MIG, or another process on it")
        elif rate < _SHARE_OF_FASTEST * max(rates):
            yield warning(f"{text}; the fastest has {max(rates) / 1e12:.0f}", "each step waits for the slowest rank")
        else:
            yield passed(text)


def judge_cpu(one: Sequence[float], together: Sequence[float], *, threads: int) -> Finding:
    """Judge rates in FLOP/s of repeated products, with one thread and with all."""
    best, usual = max(together), statistics.median(together)
    text = f"fp32 products: {best / 1e9:.0f} GFLOP/s with {threads} threads, {best / max(one):.1f} times one thread"
    if usual < _SHARE_OF_BEST * best:
        return warning(f"{text}; usually {usual / best:.0%} of that", "other work disturbs: see the check `cores`")
    if best < _SHARE_OF_THREADS * threads * max(one):
        return warning(text, "hardware threads of one core, a quota, or other work: see the check `cores`")
    return passed(text)


def _with_threads(number: int) -> list[float]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        return _rates(torch.device("cpu"), 768, torch.float32)
    finally:
        torch.set_num_threads(before)


def _rates(device: torch.device, size: int, dtype: torch.dtype) -> list[float]:
    """FLOP/s of repeated products of two square matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    found = []
    for _ in range(2 + _REPEATS):
        _wait(device)
        started = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        found.append(2 * size**3 / (time.perf_counter() - started))
    return found[2:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
