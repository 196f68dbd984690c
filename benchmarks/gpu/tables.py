"""A table of a device's work in one step of each model, computed on the meta device, for docs/gpu.md.

python -m benchmarks.gpu.tables            prints it in Markdown; needs no GPU
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import MODELS, Case, case
from benchmarks.gpu.device_work import counted, kept_bytes
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain.engine.config import DTYPES

META = torch.device("meta")
ROWS = 32


@dataclass(frozen=True)
class Work:
    """Operations in the second micro-batch of a step (views and allocations not counted), and bytes kept between."""

    forward: int
    backward: int
    backbone: int
    """Operations of the backbone, forward and backward."""
    kept_bytes: int
    from_cpu: tuple[str, ...]
    """Operations that read a CPU tensor or made one."""


def work_of(of: Case) -> Work:
    """Count the work of a model's forward and backward pass, with dropout. Raises if the host would have to wait."""
    with META:
        model, objective = pretraining_model(of)
    model = model.to(DTYPES[of.precision]).train()
    batch = make_batch(of, objective).to(META)
    mems = model.backbone.empty_memory(of.rows, of.mem_len)

    def loss() -> Tensor:
        found, _ = model(batch, mems)
        return torch.stack([found.sums[term] for term in batch.counts]).sum()

    def hidden() -> Tensor:
        found, _ = model.backbone(batch.inputs, mems)
        return found.tokens if found.predictions is None else found.predictions

    loss().backward()  # from here on gradients are added
    forward, backward, from_cpu = _passes(loss)
    backbone = sum(_passes(lambda: hidden().sum())[:2])
    return Work(forward, backward, backbone, kept_bytes(loss, without=model.parameters()), tuple(from_cpu))


def _passes(make: Callable[[], Tensor]) -> tuple[int, int, list[str]]:
    with counted() as forward:
        result = make()
    with counted() as backward:
        result.backward()
    return forward.total, backward.total, forward.from_cpu + backward.from_cpu


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
                "of them a layer": f"{work.backbone / of.num_layers:.0f}",
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
