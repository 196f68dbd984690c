"""Part `step`: one whole step of each model: launches, waits of the host for the device, kept and peak memory.

Beside each stands what the meta device says: the number of operations and the bytes kept for the backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import MODELS, Case, case
from benchmarks.gpu.device import device
from benchmarks.gpu.record import Record
from benchmarks.gpu.tables import work_of
from benchmarks.ours import build_engine
from xlpretrain import distributed
from xlpretrain.engine import Engine
from xlpretrain.engine.train_step import train_step
from xlpretrain.models.pretraining_model import Batch

TABLE = "One step of the plain engine, bf16 (operations and kept memory are computed; the rest is measured)"


def run(record: Record, *, toy: bool) -> None:
    """Record launches and memory of each model's step, and check that the host does not wait."""
    cases = [
        case(model, "tiny" if toy else "base", rows=2 if toy else 32, precision="bf16", threads=1) for model in MODELS
    ]
    computed = {of.model: work_of(of) for of in cases}  # before the process group of the device
    for of in cases:
        model, work = of.model, computed[of.model]
        engine, batch, _ = build_engine(of)
        step = _steps(engine, batch, of)
        for _ in range(3):  # the first ones make the optimizer's state and load kernels
            step()
        record.row(
            TABLE,
            model=f"{model} {of.rows} x {of.seq_len} + {of.mem_len}",
            operations=f"{work.forward} + {work.backward} + {work.update}",
            launches=_launches(step),
            **{"kept, MiB a sample": work.kept_bytes / 2**20 / of.rows},
            **_memory(engine, batch, of, step),
        )
        _check_waits(record, model, step)
        del engine, step
    distributed.shutdown()


def _steps(engine: Engine, batch: Batch, of: Case) -> Callable[[], None]:
    """The step of the training loop, with memories."""
    memory = [engine.model.backbone.empty_memory(of.rows, of.mem_len).to(engine.device)]

    def step() -> None:
        nonlocal memory
        memory = train_step(engine, [batch], memory, counts=batch.counts, lr=1e-5, seed=1).memory

    return step


def _check_waits(record: Record, model: str, step: Callable[[], None]) -> None:
    """Check that no operation of a step makes the host wait for the device."""
    if not torch.cuda.is_available():
        record.note(f"{model}: waits of the host exist only on a GPU")
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen, _warn_at_waits():
        warnings.simplefilter("always")
        step()
    waits = sorted({f"{warning.filename}:{warning.lineno}" for warning in seen if "synchroniz" in str(warning.message)})
    record.check(f"{model}: the host waits for the device nowhere in a step", not waits, "; ".join(waits))


@contextmanager
def _warn_at_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("warn")  # names every place, where "error" would name the first
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _launches(step: Callable[[], None]) -> int:
    """Kernels, copies and fills that the device ran in a step; on a CPU the operations that no other one called."""
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    if on_gpu:
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())
    return sum(event.cpu_parent is None for event in seen.events())


def _memory(engine: Engine, batch: Batch, of: Case, step: Callable[[], None]) -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    mems = engine.model.backbone.empty_memory(of.rows, of.mem_len).to(device())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    outputs: tuple[object, Tensor] = engine.forward(batch, mems)
    kept = torch.cuda.memory_allocated() - before
    del outputs
    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated()
    return {"kept, measured": kept / 2**20 / of.rows, "state, GiB": before / 2**30, "peak, GiB": peak / 2**30}
