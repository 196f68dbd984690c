"""A table of a device's work in one step of each model, computed on the meta device, for docs/gpu.md.

python -m benchmarks.gpu.tables            prints it in Markdown; needs no GPU
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.cases import MODELS, Case, case
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain.engine import PlainConfig
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.objectives.target_clusters import with_target_clusters
from xlpretrain.optim import OPTIMIZERS
from xlpretrain.planning.device_work import counted, kept_bytes

META = torch.device("meta")
ROWS = 32


@dataclass(frozen=True)
class Work:
    """Operations of the second micro-batch and of the update (views and allocations not counted), and bytes kept."""

    forward: int
    backward: int
    """Including the sum of the gradients with those of the first micro-batch."""
    update: int
    """Norm, clipping, optimizer, and the copy of the weights to the data type that the model computes in."""
    kept_bytes: int
    from_cpu: tuple[str, ...]
    """Operations of all three that read a CPU tensor or made one."""


def work_of(of: Case, *, optimizer: str = "adamw", model_keys: dict[str, Any] | None = None) -> Work:
    """Count the work of a step of the plain engine, with dropout. Raises if the host would have to wait."""
    with META:
        model, objective = pretraining_model(of, model_keys=model_keys)
    settings = OPTIMIZERS[optimizer]()
    with single_process():
        config = PlainConfig(precision=of.precision)
        engine = config.build(model, settings, num_micro_batches=2, weights=objective.weights, device=META)
        batch = clustered(make_batch(of, objective), model).to(META)
        mems = model.backbone.empty_memory(of.rows, of.mem_len)
        kept = kept_bytes(lambda: engine.forward(batch, mems), without=model.parameters())
        engine.start_step(batch.counts)
        engine.backward(engine.forward(batch, mems)[0])
        with counted() as forward:
            loss, _ = engine.forward(batch, mems)
        with counted() as backward:
            engine.backward(loss)
        engine.update(1e-5)
        with counted() as update:
            engine.update(1e-5)
    from_cpu = (*forward.from_cpu, *backward.from_cpu, *update.from_cpu)
    return Work(forward.total, backward.total, update.total, kept, from_cpu)


def clustered(batch: Batch, model: PretrainingModel) -> Batch:
    """The batch as the collator makes it for the model: with the clusters of targets, if it has an adaptive softmax."""
    return with_target_clusters(lambda samples: batch, model.backbone)([])


@contextmanager
def single_process() -> Iterator[None]:
    """A process group of one process, for CPU tensors and for those of the meta device."""
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def cases() -> Iterator[tuple[str, Case, dict[str, Any]]]:
    """The base models; Transformer-XL also with the adaptive softmax and the vocabulary of WikiText-103."""
    for model in MODELS:
        of = case(model, "base", rows=ROWS, precision="bf16", threads=1)
        yield model, of, {}
        if model == "transformer_xl":
            cutoffs = (20000, 40000, 200000)
            yield f"{model}, adaptive", replace(of, vocab_size=267735), {"adaptive_cutoffs": cutoffs}


def rows() -> list[dict[str, Any]]:
    """One row for each case, in bf16, dropout on."""
    found = []
    for name, of, keys in cases():
        work = work_of(of, model_keys=keys)
        found.append(
            {
                "model": f"{name}, {of.rows} x {of.seq_len}" + (f" + {of.mem_len}" if of.mem_len else ""),
                "forward": work.forward,
                "backward": work.backward,
                "update": work.update,
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
