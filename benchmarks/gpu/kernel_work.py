"""Work of one layer's relative attention with `sdpa` and with `fused`: operations, bytes, FLOPs, and their roofline.

Operations and bytes are counted on the meta device, forward and backward, in the second micro-batch of a step, each
operation reading and writing its tensors once. What a fused operator does inside is counted in
`fused_work.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, case
from benchmarks.gpu.fused_work import FusedWork
from benchmarks.gpu.reference import IN_MEMORY
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain.engine.config import DTYPES
from xlpretrain.models.attention import RelativeAttention
from xlpretrain.models.stack import Layer
from xlpretrain.planning.device_work import counted, kept_bytes

META = torch.device("meta")
CASES = (("transformer_xl", "base"), ("transformer_xl", "large"), ("xlnet", "base"), ("xlnet", "large"))
ROWS = 32
CARDS = {"A100": (312e12, 2.0e12), "H100": (989e12, 3.35e12)}
"""Dense bf16 FLOP/s and bytes/s of the cards' data sheets."""
OPERATORS = ("fused_relative_attention", "fused_relative_attention_backward")
IMPLEMENTATIONS = ("sdpa", IN_MEMORY, "fused")


@dataclass(frozen=True)
class AttentionWork:
    """Work of one layer's attention, projections included, forward and backward."""

    operations: int
    """Operations of a whole layer, the kernels inside of a fused operator counted."""
    moved_bytes: int
    scores_bytes: int
    """Bytes moved without those of the projections: what depends on the implementation."""
    kept_bytes: int
    flops: float
    """FLOPs without those of the projections."""


def attention_work(of: Case, implementation: str, *, whole: bool = False) -> AttentionWork:
    """Count the work of a layer's attention. whole: operations are those of a layer that is computed as a whole."""
    model, mems, inputs = _model(of, implementation)
    captured: list[tuple[Any, ...]] = []
    attention = model.layers[0].attention
    hook = attention.register_forward_pre_hook(lambda _, args: captured.append(args))
    model(inputs, mems)
    hook.remove()
    arguments = [x.detach().requires_grad_() if _learned(x) else x for x in captured[0]]
    arguments[1] = arguments[1].detach()  # the memory has no gradient
    attention(*arguments).sum().backward()
    with counted() as operations:
        output = attention(*arguments)
        output.backward(torch.empty_like(output))
    kept = kept_bytes(lambda: attention(*arguments), without=[*model.parameters(), *filter(_learned, arguments)])
    inside = FusedWork.of(attention, of, arguments, in_memory=implementation == IN_MEMORY)
    moved = Counter(operations.moved)
    for name, moved_bytes in zip(OPERATORS, inside.moved(), strict=True):
        if moved[name]:
            moved[name] = moved_bytes
    projections = _projections(attention, of, arguments)
    flops = inside.flops_of_sdpa() if implementation == "sdpa" else inside.flops()
    return AttentionWork(
        _operations_of_layer(of, implementation, inside.operations(), whole=whole),
        moved.total(),
        moved.total() - projections,
        kept,
        flops,
    )


def rows() -> list[dict[str, Any]]:
    """One row for each case and implementation."""
    found = []
    for model, shape in CASES:
        of = case(model, shape, rows=ROWS, precision="bf16", threads=1)
        works = {name: attention_work(of, name) for name in IMPLEMENTATIONS}
        for name, work in works.items():
            bounds = {
                f"bound on {card}, ms": f"{max(work.flops / peak, work.scores_bytes / width) * 1e3:.2f}"
                for card, (peak, width) in CARDS.items()
            }
            found.append(
                {
                    "model": f"{model} {shape}, {of.rows} x {of.seq_len} + {of.mem_len}",
                    "attention": name,
                    "operations a layer": work.operations,
                    "moved, MiB": f"{work.scores_bytes / 2**20:,.0f}",
                    "times fewer": f"{works['sdpa'].scores_bytes / work.scores_bytes:.1f}",
                    "with projections, MiB": f"{work.moved_bytes / 2**20:,.0f}",
                    "kept, MiB a sample": f"{work.kept_bytes / 2**20 / of.rows:.1f}",
                    "GFLOP": f"{work.flops / 1e9:,.0f}",
                    **bounds,
                }
            )
    return found


def _model(of: Case, implementation: str, *, whole: bool = False) -> tuple[Any, Tensor, Any]:
    with META:
        pretraining, objective = pretraining_model(of)
    model = pretraining.to(DTYPES[of.precision]).train().backbone
    for module in model.modules():
        if isinstance(module, RelativeAttention):
            module.implementation = implementation.split(",")[0]  # type: ignore[assignment]
        if isinstance(module, Layer):
            module.whole = whole and implementation != "sdpa" and module.parts() is not None
    return model, model.empty_memory(of.rows, of.mem_len), make_batch(of, objective).to(META).inputs


def _operations_of_layer(of: Case, implementation: str, inside: tuple[int, int], *, whole: bool) -> int:
    """The difference between three layers and two, in the second micro-batch."""
    found = []
    for layers in (3, 2):
        model, mems, inputs = _model(_with_layers(of, layers), implementation, whole=whole)
        for _ in range(2):
            with counted() as operations:
                hidden, _ = model(inputs, mems)
                hidden.tokens.backward(torch.empty_like(hidden.tokens))
        launched = sum((more - 1) * operations.counts[name] for name, more in zip(OPERATORS, inside, strict=True))
        found.append(operations.total + launched)
    return found[0] - found[1]


def _with_layers(of: Case, layers: int) -> Case:
    return Case(**{**of.as_json(), "num_layers": layers})


def _learned(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def _projections(attention: nn.Module, of: Case, arguments: list[Any]) -> int:
    """Bytes of the products with weights: forward, and the gradients of input and weight."""
    hidden, memory = arguments[0], arguments[1]
    batch_size, queries, width = hidden.shape
    keys = memory.shape[1] + of.seq_len
    weight = attention.query.weight  # type: ignore[union-attr]
    inner = weight.shape[0]
    rows_of = {"query": batch_size * queries, "key": batch_size * keys, "value": batch_size * keys}
    rows_of |= {"output": batch_size * queries}
    return sum(3 * hidden.element_size() * (rows * (width + inner) + weight.numel()) for rows in rows_of.values())


if __name__ == "__main__":
    from benchmarks.gpu.record import table

    print(table(rows()))
