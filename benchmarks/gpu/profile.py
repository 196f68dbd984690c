"""Part `profile`: shares of a step's time on the device, by what its kernels are for, and the gaps between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import MODELS, case
from benchmarks.gpu.device import median_ms, times_s
from benchmarks.gpu.record import Record
from benchmarks.ours import build
from xlpretrain import distributed

GROUPS = {
    "optimizer": ("adam", "optimizer", "foreach", "vector_norm", "clip"),
    "loss": ("chunkedloss", "cross_entropy", "nll", "log_softmax", "logsumexp", "linear_cross"),
    "attention": ("scaled_dot_product", "attention", "flash", "fmha", "softmax"),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul"),
    "norms, dropout, activations": ("layer_norm", "rms_norm", "dropout", "dropped", "gelu", "relu", "silu", "tanh"),
    "copies": ("copy_", "aten::cat", "fill_", "zero_", "memcpy", "memset", "aten::to"),
}
"""Words in the name of an operation, or of one that called it; the first group that has one wins."""
REST = "sums, masks, embeddings and the rest"
GAPS = "gaps between kernels"
NUM_KERNELS = 8


def run(record: Record, *, toy: bool) -> None:
    """Record the shares of each model's step, and the longest kernels."""
    for model in MODELS:
        of = case(model, "tiny" if toy else "base", rows=2 if toy else 32, precision="bf16", threads=1)
        step, _ = build(of)
        wall_ms = median_ms(times_s({"step": step}, repeats=2 if toy else 5, warmup=3)["step"])
        on_gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as seen:
            step()
            if on_gpu:
                torch.cuda.synchronize()
        times, kernels = _times_us(seen.events(), on_gpu=on_gpu)
        busy_ms = times.total() / 1000
        whole_ms = max(wall_ms, busy_ms)
        times[GAPS] = round(1000 * (whole_ms - busy_ms))
        record.row(
            "Shares of a step" + ("" if on_gpu else " (of the processor's time)"),
            model=f"{model} {of.rows} x {of.seq_len} + {of.mem_len}",
            ms=wall_ms,
            **{group: f"{times[group] / 10 / whole_ms:.1f} %" for group in (*GROUPS, REST, GAPS)},
        )
        for name, microseconds in kernels.most_common(NUM_KERNELS):
            record.row("Longest kernels", model=model, kernel=name[:90], ms=microseconds / 1000)
        del step
    distributed.shutdown()


def _times_us(events: Any, *, on_gpu: bool) -> tuple[Counter[str], Counter[str]]:
    """Microseconds of each group, and of each kernel (on a CPU, of each operation)."""
    groups: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for event in events:
        if on_gpu:
            for kernel in event.kernels:
                groups[_group(event)] += kernel.duration
                kernels[kernel.name] += kernel.duration
        else:
            groups[_group(event)] += event.self_cpu_time_total
            kernels[event.name] += event.self_cpu_time_total
    return groups, kernels


def _group(event: Any) -> str:
    around = " ".join(_around(event)).lower()
    return next((group for group, words in GROUPS.items() if any(word in around for word in words)), REST)


def _around(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent
