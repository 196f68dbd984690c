"""A table of a device's work in one step of each model, computed on the meta device, for docs/gpu.md.

python -m benchmarks.gpu.tables            prints it in Markdown; needs no GPU
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.cases import MODELS, Case, case
from benchmarks.gpu.device_work import counted, kept_bytes
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain.engine import PlainConfig
from xlpretrain.optim import OPTIMIZERS

META = torch.device("meta")
ROWS = 32


@dataclass(frozen=True)
class Work:
    """Operations of the second micro-batch of a step (views and allocations not counted), and bytes kept."""

    forward: int
    backward: int
    """Including the sum of the gradients with those of the first micro-batch."""
    kept_bytes: int
    from_cpu: tuple[str, ...]
    """Operations of both that read a CPU tensor or made one."""


def work_of(of: Case, *, optimizer: str = "adamw", model_keys: dict[str, Any] | None = None) -> Work:
    """Count the work of a step of the plain engine, with dropout. Raises if the host would have to wait."""
    with META:
        model, objective = pretraining_model(of, model_keys=model_keys)
    settings = OPTIMIZERS[optimizer]()
    with single_process():
        config = PlainConfig(precision=of.precision)
        engine = config.build(model, settings, num_micro_batches=2, weights=objective.weights, device=META)
        batch = make_batch(of, objective).to(META)
        mems = model.backbone.empty_memory(of.rows, of.mem_len)
        kept = kept_bytes(lambda: engine.forward(batch, mems), without=model.parameters())
        engine.start_step(batch.counts)
        engine.backward(engine.forward(batch, mems)[0])
        with counted() as forward:
            loss, _ = engine.forward(batch, mems)
        with counted() as backward:
            engine.backward(loss)
    from_cpu = (*forward.from_cpu, *backward.from_cpu)
    return Work(forward.total, backward.total, kept, from_cpu)


@contextmanager
def single_process() -> Iterator[None]:
    """A process group of one process, for CPU tensors and for those of the meta device."""
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rows() -> list[dict[str, Any]]:
    """One row for each model of base size, in bf16, dropout on."""
    found = []
    for model in MODELS:
        of = case(model, "base", rows=ROWS, precision="bf16", threads=1)
        work = work_of(of)
        found.append(
            {
                "model": f"{model}, {of.rows} x {of.seq_len}" + (f" + {of.mem_len}" if of.mem_len else ""),
                "forward": work.forward,
                "backward": work.backward,
                "kept, MiB a sample": f"{work.kept_bytes / 2**20 / of.rows:,.0f}",
                "kept, bytes / (tokens x layers x d_model)": (
                    f"{work.kept_bytes / (of.rows * of.seq_len * of.num_layers * of.d_model):.1f}"
                ),
            }
        )
    return found


if __name__ == "__main__":
    from benchmarks.gpu.record import table

    print(table(rows()))
