"""Part `speed`: whole training steps against `transformers` on the same device, in turn, in one process.

Medians by CUDA events. The share of the peak is that of the matrix-product FLOPs (counted as in docs/benchmarks.md) in
the peak of a large product, measured here; a peer is charged the same FLOPs, whatever it computes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.cases import MODELS, Case, case
from benchmarks.gpu.device import median_ms, peak, times_s
from benchmarks.gpu.record import Record
from benchmarks.ours import build
from benchmarks.peers import build as build_peer
from benchmarks.peers_of import variants
from xlpretrain import distributed


def run(record: Record, *, toy: bool) -> None:
    """Measure every case: first the base models beside their peers, then more rows, then the large ones."""
    best = peak("bf16", toy=toy)
    record.note(
        f"peak of a bf16 product: {best / 1e12:.3g} TFLOP/s; transformers 5 has no Transformer-XL to compare with"
    )
    for of, with_peers in cases(toy):
        measure(record, of, with_peers=with_peers, peak_flops=best, repeats=2 if toy else 6)
    distributed.shutdown()


def cases(toy: bool) -> Iterator[tuple[Case, bool]]:
    """Cases, and if peers are measured with them."""
    size = {"precision": "bf16", "threads": 1}
    if toy:
        yield from ((case(model, "tiny", rows=2, **size), model != "transformer_xl") for model in MODELS)
        return
    for model in ("bert", "albert", "xlnet", "transformer_xl"):
        yield case(model, "base", rows=32, **size), model != "transformer_xl"
    for model in ("bert", "albert", "transformer_xl", "xlnet"):
        yield case(model, "base", rows=64, **size), False
    for model in ("bert", "transformer_xl", "xlnet", "albert"):
        yield case(model, "large", rows=16, **size), False


def measure(record: Record, of: Case, *, with_peers: bool, peak_flops: float, repeats: int) -> None:
    """Measure one case; a side that does not run, for lack of memory for example, is named and left out."""
    sides: dict[str, Callable[[], Any]] = {}
    own: dict[str, int] = {}
    flops = 0.0
    names = ["ours", *(name for name in variants(of) if with_peers and "collator" not in name)]
    for name in names:
        before = _allocated()
        try:
            if name == "ours":
                sides[name], flops = build(of)
            else:
                sides[name] = build_peer(of, name)
            sides[name]()
        except Exception as error:
            record.note(f"{of.key}: {name} does not run: {type(error).__name__}: {str(error)[:200]}")
            sides.pop(name, None)
        own[name] = _allocated() - before
    peaks = dict.fromkeys(sides, 0)

    def after(name: str) -> None:
        if torch.cuda.is_available():
            others = _allocated() - own[name]
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() - others)
            torch.cuda.reset_peak_memory_stats()

    after("ours")
    times = times_s(sides, repeats=repeats, warmup=2, between=after)
    for name, seconds in times.items():
        step_s = median_ms(seconds) / 1000
        record.row(
            "Whole steps, bf16, dropout on, plain engine",
            case=f"{of.model} {of.shape} {of.rows} x {of.seq_len} + {of.mem_len}",
            side=name,
            ms=1000 * step_s,
            **{
                "tokens/s": round(of.rows * of.seq_len / step_s),
                "share of peak": f"{100 * flops / step_s / peak_flops:.1f} %",
                "GiB": peaks[name] / 2**30 if peaks[name] else "",
                "ours is faster by": _ratio(seconds, times["ours"]) if name != "ours" and "ours" in times else "",
            },
        )
    sides.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ratio(theirs: list[float], ours: list[float]) -> str:
    return f"{median_ms(theirs) / median_ms(ours):.2f}"


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
