"""Choice of the tiles of fused relative attention by time, on the device at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from xlpretrain.models.kernels.fused.example import SMALL, Kind, Sizes, example
from xlpretrain.models.kernels.fused.operators import draw_seed, fused_relative_attention
from xlpretrain.models.kernels.fused.tiles import Tiles, admissible, use_tiles

Timer = Callable[[Callable[[], object]], float]
"""Seconds, or any other cost, of a call."""
_REPEATS = 7


def fastest_tiles(
    device: torch.device,
    kind: Kind,
    *,
    num_heads: int,
    sizes: Sizes | None = None,
    timer: Timer | None = None,
    add_up: Callable[[Sequence[float]], Sequence[float]] = list,
) -> Tiles:
    """Time forward and backward with all tiles that the device can take, and use the fastest from now on.

    Tiles that fail to compile or to run are out; if all do, those of the table stay, and the model will say why.

    Args:
        sizes: lengths of what is timed; by default on a GPU those of the published base models.
        add_up: sums the times over the ranks, which so agree.
    """
    if sizes is None:
        sizes = Sizes(8, 512, 512, num_heads, 85) if device.type == "cuda" else SMALL._replace(heads=num_heads)
    timer = timer or (_gpu_seconds if device.type == "cuda" else _seconds)
    call, candidates = _step(device, kind, sizes), admissible(device, kind.dtype, kind.width)
    costs = []
    for tiles in candidates:
        use_tiles(device, kind.dtype, kind.width, tiles)
        try:
            costs.append(timer(call))
        except Exception:  # anything that a compiler or a driver may raise
            costs.append(float("inf"))
    costs = list(add_up(costs))
    chosen = candidates[costs.index(min(costs))]
    use_tiles(device, kind.dtype, kind.width, chosen)
    return chosen


def _step(device: torch.device, kind: Kind, sizes: Sizes) -> Callable[[], object]:
    arguments, segment, view = example(device, kind, sizes)
    learned = [each.to(kind.dtype).requires_grad_() for each in (*arguments, segment)]
    towards = torch.randn_like(learned[0])
    seed = draw_seed(device) if kind.rate else None
    query, key, value, by_position, distance, by_segment = learned
    inputs = learned[:-1] if kind.causal else learned
    places = query, key, value, by_position, distance, None if kind.causal else by_segment, view

    def step() -> object:
        output = fused_relative_attention(*places, scale=kind.width**-0.5, rate=kind.rate, seed=seed)
        return torch.autograd.grad(output, inputs, towards)

    return step


def _gpu_seconds(call: Callable[[], object]) -> float:
    call()  # compiles
    times = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3)
    return statistics.median(times)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
