"""Part `profile`: shares of a step's time on the device, and the gaps between its kernels."""

from __future__ import annotations

from itertools import islice

import torch

from benchmarks.cases import MODELS, case
from benchmarks.gpu.device import median_ms, times_s
from benchmarks.gpu.record import Record
from benchmarks.ours import build_engine, step_of
from benchmarks.shares import profiled
from xlpretrain import distributed

GAPS = "gaps between kernels"
NUM_KERNELS = 8


def run(record: Record, *, toy: bool) -> None:
    """Record the shares of each model's step, and the longest kernels."""
    for model in MODELS:
        of = case(model, "tiny" if toy else "base", rows=2 if toy else 32, precision="bf16", threads=1)
        engine, batch, _ = build_engine(of)
        torch.set_num_threads(of.threads)
        step = step_of(of, engine, batch)
        wall_ms = median_ms(times_s({"step": step}, repeats=2 if toy else 5, warmup=3)["step"])
        shares = profiled(step, engine)
        # The profiler slows the host, so gaps are what a step without it takes beyond the kernels' time.
        busy = {group: 1000 * seconds for group, seconds in shares.seconds.items() if group != "host"}
        whole_ms = max(wall_ms, sum(busy.values()))
        busy[GAPS] = whole_ms - sum(busy.values())
        record.row(
            "Shares of a step" + ("" if shares.on_gpu else " (of the processor's time)"),
            model=f"{model} {of.rows} x {of.seq_len} + {of.mem_len}",
            ms=wall_ms,
            **{group: f"{100 * milliseconds / whole_ms:.1f} %" for group, milliseconds in busy.items()},
        )
        for name, seconds in islice(shares.operations.items(), NUM_KERNELS):
            record.row("Longest kernels", model=model, kernel=name[:90], ms=1000 * seconds)
        del step, engine
    distributed.shutdown()
