"""Tiles chosen by cost: on a CPU the cost is a number of Python calls, of the interpreter that runs the programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from xlpretrain.extras import is_missing
from xlpretrain.models.kernels.fused.autotune import fastest_tiles
from xlpretrain.models.kernels.fused.example import Kind, Sizes
from xlpretrain.models.kernels.fused.tiles import admissible, describe, tiles, use_tiles

CPU, WIDTH = torch.device("cpu"), 8
KIND = Kind(torch.float32, WIDTH, 0.0, causal=True)
SIZES = Sizes(samples=1, tokens=17, memory=3, heads=1, predictions=0)
pytestmark = [
    pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed"),
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def tiles_of_the_table() -> Iterator[None]:
    yield
    use_tiles(CPU, KIND.dtype, WIDTH, None)


def calls_of(step: Callable[[], object]) -> int:
    """The number of Python functions that a step calls."""
    count = 0

    def counted(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count


def test_the_cheapest_tiles_are_used_from_then_on():
    costs = []

    def cost(step: Callable[[], object]) -> int:
        costs.append(calls_of(step))
        return costs[-1]

    chosen = fastest_tiles(CPU, KIND, num_heads=1, sizes=SIZES, timer=cost)
    candidates = admissible(CPU, KIND.dtype, WIDTH)
    assert len(costs) == len(set(costs)) == len(candidates) > 1
    assert chosen == candidates[costs.index(min(costs))] == tiles(CPU, KIND.dtype, WIDTH)
    dearest = fastest_tiles(CPU, KIND, num_heads=1, sizes=SIZES, timer=lambda step: -calls_of(step))
    assert dearest == candidates[costs.index(max(costs))] == tiles(CPU, KIND.dtype, WIDTH)
    assert describe(dearest) != describe(chosen)


def test_ranks_agree_by_the_sum_of_their_costs():
    def with_another_rank(costs: list[float]) -> list[float]:
        return [cost + other for cost, other in zip(costs, (0, 1e9), strict=True)]

    chosen = fastest_tiles(CPU, KIND, num_heads=1, sizes=SIZES, timer=calls_of, add_up=with_another_rank)
    assert chosen == admissible(CPU, KIND.dtype, WIDTH)[0]


def test_tiles_that_do_not_run_are_out():
    def only_the_last(step: Callable[[], object]) -> float:
        if tiles(CPU, KIND.dtype, WIDTH).band:
            raise RuntimeError("out of resources")
        return calls_of(step)

    assert fastest_tiles(CPU, KIND, num_heads=1, sizes=SIZES, timer=only_the_last).band is None
