"""Fused attention, interpreted on the CPU, against the formula in float64: outputs, every gradient, and leaks.

Modules: operators.py, launch.py, scores.py, reference.py, tiles.py, visibility.py; programs/: distances.py, forward.py,
keys.py, parts.py, queries.py, sums.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from xlpretrain.extras import is_missing
from xlpretrain.models.attention_mask import attention_mask
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.fused import launch
from xlpretrain.models.kernels.fused.operators import fused_relative_attention
from xlpretrain.models.kernels.fused.reference import attention_written_down, kept_weights, visible
from xlpretrain.models.kernels.fused.tiles import INTERPRETED, BandTiles, MemoryTiles, Tile, Tiles, use_tiles
from xlpretrain.models.kernels.fused.visibility import Visibility, visibility

pytestmark = [
    pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed"),
    # Numbers that are read past the end and not used.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
]


WIDTHS = [3, 8, 16, 20]
_WIDE, _LONG = Tile(16, 32, 4, 1), Tile(32, 16, 4, 1)
TILINGS = {
    "band": INTERPRETED,
    "memory": Tiles(INTERPRETED.memory, None),
    "long": Tiles(MemoryTiles(_LONG, _WIDE, _LONG), BandTiles(_LONG, _LONG, _WIDE, _WIDE)),
    "wide": Tiles(MemoryTiles(_WIDE, _LONG, _WIDE), BandTiles(_WIDE, _WIDE, _WIDE, _WIDE)),
}
"""Position scores made by the programs or in memory; tiles with as many, more and fewer queries than keys."""
QUICK = {"band": range(10), "memory": (0, 6), "long": (3, 7), "wide": (2,)}
EVERY_CASE = [
    pytest.param(tiling, seed, marks=() if seed in QUICK[tiling] else pytest.mark.full)
    for tiling in TILINGS
    for seed in range(200)
]


@pytest.fixture
def tiling(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use one of `TILINGS`."""
    dtypes = torch.float32, torch.bfloat16
    for dtype in dtypes:
        for width in WIDTHS:
            use_tiles(torch.device("cpu"), dtype, width, TILINGS[request.param])
    yield
    for dtype in dtypes:
        for width in WIDTHS:
            use_tiles(torch.device("cpu"), dtype, width, None)


class Case(NamedTuple):
    """Everything that is random."""

    inputs: BackboneInput
    settings: dict[str, Any]
    """Arguments of `attention_mask`."""
    num_heads: int
    width: int
    directions: int
    rate: float

    @property
    def view(self) -> Visibility:
        return visibility(self.inputs, **self.settings)

    def arguments(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Queries, keys, values, queries by position, distances, segment scores: numbers that the dtype can hold."""
        samples, tokens = self.inputs.tokens.shape
        (_, _, queries), keys = self.view.queries.shape, self.view.keys.shape[2]
        heads, width = self.num_heads, self.width
        distances = -(-(keys + (1 if self.settings["causal"] else tokens)) // 8) * 8
        of_queries, of_keys = (samples, queries, heads), (samples, keys, heads)
        shapes = [(*of_queries, width), *[(*of_keys, width)] * 2, (*of_queries, width)]
        generator = torch.Generator().manual_seed(1)
        shapes += [(self.directions, distances, heads, width), (heads, samples, queries, 2)]
        made: list[Tensor | None] = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        if self.inputs.segments is None:
            made[-1] = None
        return made


def random_case(seed: int) -> Case:
    """Any shape, memory, valid length, order, segments, padding and dropout; lengths are no multiple of a tile."""
    draw, generator = random.Random(f"case {seed}"), torch.Generator().manual_seed(seed)
    samples, tokens, memory = draw.randint(1, 3), draw.randint(1, 37), draw.choice([0, 1, 7, 16, 30])
    causal = draw.random() < 0.4
    shape = (samples, tokens)
    order = predict = segments = padding = None
    if not causal:
        if draw.random() < 0.6:
            order = torch.randint(-1, tokens, shape, generator=generator)
        if draw.random() < 0.7:
            some = draw.randint(1, tokens)
            predict = torch.stack([torch.randperm(tokens, generator=generator)[:some] for _ in range(samples)])
        if draw.random() < 0.7:
            segments = torch.randint(0, 3, shape, generator=generator)
    if draw.random() < 0.4:
        padding = torch.rand(shape, generator=generator) < 0.6  # some samples may see nothing
    directions = draw.randint(1, 2)
    return Case(
        BackboneInput(
            torch.zeros(shape, dtype=torch.int64),
            torch.randint(0, memory + 2, (samples,), generator=generator),
            attention_mask=padding,
            segments=segments,
            perm_rank=order,
            target_positions=predict,
            reversed=None if directions == 1 else torch.rand(samples, generator=generator) < 0.5,
        ),
        {
            "mem_len": memory,
            "causal": causal,
            "same_length": causal and draw.random() < 0.5,
            "initial_zeros": draw.random() < 0.2,
        },
        num_heads=draw.randint(1, 3),
        width=draw.choice(WIDTHS),
        directions=directions,
        rate=draw.choice([0.0, 0.1, 0.6]),
    )


def _results(attention: Any, case: Case, dtype: torch.dtype, rounded: torch.dtype) -> list[Tensor]:
    """The output and all gradients in a dtype, of arguments that are rounded to another."""
    arguments = [x if x is None else x.to(dtype).requires_grad_() for x in case.arguments(rounded)]
    seed = torch.tensor([-7, 123456789], dtype=torch.int32) if case.rate else None
    output = attention(*arguments, case.view, scale=0.4, rate=case.rate, seed=seed)
    towards = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    some = [x for x in arguments if x is not None]
    return [output, *torch.autograd.grad((output * towards.to(dtype)).sum(), some)]


def _check(case: Case, dtype: torch.dtype, limit: float) -> None:
    found = _results(fused_relative_attention, case, dtype, dtype)
    right = _results(attention_written_down, case, torch.float64, dtype)
    for place, (ours, exact) in enumerate(zip(found, right, strict=True)):
        assert ours.shape == exact.shape
        assert (ours - exact).abs().max() <= limit * exact.abs().max().clamp(min=1), place
    seen_BQK = visible(case.view)
    output, d_query, d_key, d_value, d_position, _, *d_segment = found
    blind_BQ, unseen_BK = ~seen_BQK.any(2), ~seen_BQK.any(1)
    assert not any(x[blind_BQ].any() for x in (output, d_query, d_position))
    assert not any(x[unseen_BK].any() for x in (d_key, d_value))
    assert not any(x[:, blind_BQ].any() for x in d_segment)


@pytest.mark.parametrize(("tiling", "seed"), EVERY_CASE, indirect=["tiling"])
def test_outputs_and_gradients_are_those_of_the_formula(tiling: None, seed: int):
    _check(random_case(seed), torch.float32, 1e-5)


@pytest.mark.parametrize("seed", [3, *(pytest.param(n, marks=pytest.mark.full) for n in range(300, 320))])
def test_in_bf16_they_are_rounded(seed: int):
    """Products are in fp32; weights and their gradients are rounded to 8 bits before the next product."""
    _check(random_case(seed), torch.bfloat16, 0.04)


def test_the_random_cases_have_everything():
    cases = [random_case(seed) for seed in range(12)]
    assert {case.settings["causal"] for case in cases} == {True, False}
    assert any(case.view.window for case in cases)
    assert any(case.view.not_own for case in cases)
    assert any(case.inputs.perm_rank is not None and case.inputs.target_positions is not None for case in cases)
    assert any(case.inputs.segments is not None for case in cases)
    assert any(not visible(case.view).any(2).all() for case in cases)
    assert any(case.rate > 0 for case in cases)
    assert {case.directions for case in cases} == {1, 2}


@pytest.mark.parametrize("seed", range(200))
def test_ranks_say_the_same_as_the_mask(seed: int):
    case = random_case(seed)
    assert torch.equal(visible(case.view), attention_mask(case.inputs, **case.settings))


@pytest.mark.parametrize(
    ("tiling", "seed"), [("band", 1), ("band", 6), ("memory", 6), ("long", 4)], indirect=["tiling"]
)
def test_no_gradient_reaches_what_a_query_does_not_see(tiling: None, seed: int):
    case = random_case(seed)
    arguments = [x if x is None else x.requires_grad_() for x in case.arguments(torch.float32)]
    output = fused_relative_attention(*arguments, case.view, scale=1.0)
    query = output.shape[1] // 2
    wanted = output[:, query].square().sum()
    d_key, d_value, d_by_position = torch.autograd.grad(wanted, [arguments[i] for i in (1, 2, 3)])
    unseen_BK = ~visible(case.view)[:, query]
    assert not d_key[unseen_BK].any()
    assert not d_value[unseen_BK].any()
    assert d_value.any() or unseen_BK.all()
    d_by_position[:, query] = 0
    assert not d_by_position.any()


@pytest.mark.parametrize("tiling", ["band", pytest.param("memory", marks=pytest.mark.full)], indirect=True)
def test_every_bit_is_equal_in_two_runs(tiling: None):
    first, second = (_results(fused_relative_attention, random_case(5), torch.float32, torch.float32) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("seed", [7, 9])
def test_one_program_adds_up_the_distances_of_several_samples(monkeypatch, seed: int):
    monkeypatch.setattr(launch, "_LAUNCHED", 1)  # as if heads and distances alone were enough programs
    case = random_case(seed)
    assert len(case.inputs.tokens) > 1
    _check(case, torch.float32, 1e-5)


@pytest.mark.full
def test_the_operators_are_what_torch_expects_of_one():
    case = random_case(4)
    arguments = [x if x is None else x.requires_grad_() for x in case.arguments(torch.float32)]
    view, seed = case.view, torch.tensor([1, 2], dtype=torch.int32)
    settings = view.queries, view.keys, view.directions, seed, 0.5, 0.3, view.num_tokens, view.window, view.not_own
    torch.library.opcheck(torch.ops.xlpretrain.fused_relative_attention, (*arguments, *settings))


def test_dropout_keeps_its_share_and_rows_are_unrelated():
    weights = torch.empty(2, 3, 64, 512)
    seeds = torch.tensor([[1, 2], [3, 2], [1, 3]], dtype=torch.int32)
    kept = torch.stack([kept_weights(seed, 0.3, weights) for seed in seeds]).float()
    assert float(kept.mean()) == pytest.approx(0.7, abs=4 * (0.21 / kept.numel()) ** 0.5)
    centered = (kept - 0.7) / 0.21**0.5
    for axis in range(5):
        for distance in (1, 2):
            if kept.shape[axis] > distance:
                correlation = float((centered * centered.roll(distance, axis)).mean())
                assert abs(correlation) < 5 / kept.numel() ** 0.5, (axis, distance)
