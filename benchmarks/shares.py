"""Time shares of a training step of the base models, in bf16 on one thread.

.venv/bin/python benchmarks/shares.py      prints a table in Markdown
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import MODELS, case
from benchmarks.ours import build

PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})
COPIES = frozenset({"aten::copy_", "aten::cat", "aten::fill_", "aten::zero_"})
OPTIMIZER = ("aten::_fused_adamw_", "aten::linalg_vector_norm", "Optimizer.step")
GROUPS = {
    "matrix products": "products outside attention",
    "products of attention": "scores, weighted values, and their gradients",
    "rest of attention": "softmax, masks, shifts, dropout, layouts",
    "loss": "the loss over the vocabulary, without its products",
    "dropout": "outside attention",
    "optimizer": "AdamW and the global norm",
    "copies": "between types and layouts, concatenation, zeros",
    "rest": "activations, norms, sums, additions",
}


def main() -> None:
    """Print the table."""
    found = {model: shares(model) for model in MODELS}
    print("| share of a step | " + " | ".join(MODELS) + " | |")
    print("|---" * (len(MODELS) + 2) + "|")
    for group, what in GROUPS.items():
        print(f"| {group} | " + " | ".join(f"{100 * found[m][group]:.1f} %" for m in MODELS) + f" | {what} |")


def shares(model: str) -> dict[str, float]:
    """Fraction of the time of a step, by group."""
    step, _ = build(case(model, "base", rows=2, precision="bf16", threads=1))
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    times: Counter[str] = Counter()
    for event in seen.events():
        times[_group(event)] += event.self_cpu_time_total
    torch.distributed.destroy_process_group()
    return {group: times[group] / times.total() for group in GROUPS}


def _group(event: Any) -> str:
    around = [event.name, *_around(event)]
    if any(name.startswith("BlockAttention") for name in around):
        return "products of attention" if event.name in PRODUCTS else "rest of attention"
    if event.name in PRODUCTS:
        return "matrix products"
    if any(name.startswith("ChunkedLoss") for name in around):
        return "loss"
    if any(name.startswith("_Dropped") for name in around):
        return "dropout"
    if any(name.startswith(OPTIMIZER) for name in around):
        return "optimizer"
    return "copies" if event.name in COPIES else "rest"


def _around(event: Any) -> Iterator[str]:
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event.name


if __name__ == "__main__":
    main()
