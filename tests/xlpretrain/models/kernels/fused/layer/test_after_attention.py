"""A layer after its attention, interpreted on the CPU, against the modules in float64: output and every gradient.

Modules: programs.py, operators.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from xlpretrain.extras import is_missing
from xlpretrain.models.kernels.fused.layer.after_attention import after_attention, settings_of
from xlpretrain.models.kernels.fused.layer.operators import norm_tile, partial_sums
from xlpretrain.models.kernels.fused.reference import kept_weights
from xlpretrain.models.parts.feed_forward import ACTIVATIONS
from xlpretrain.models.parts.norm import RMSNorm

SAMPLES, QUERIES = 2, 9
SEEDS = torch.tensor([[5, -6], [7, 8], [-9, 10]], dtype=torch.int32)
pytestmark = pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed")


class Case(NamedTuple):
    """A layer's sizes and settings; widths are no multiple of a tile."""

    activation: str
    centered: bool
    rate: float
    width: int = 20
    inner: int = 150

    def modules(self) -> tuple[nn.Module, nn.Linear, nn.Linear, nn.Module]:
        generator = torch.Generator().manual_seed(1)
        kind = nn.LayerNorm if self.centered else RMSNorm
        made = [kind(self.width, eps=1e-5), nn.Linear(self.width, self.inner), nn.Linear(self.inner, self.width)]
        made.append(kind(self.width, eps=1e-5))
        for module in made:
            for parameter in module.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        return tuple(made)  # type: ignore[return-value]


def written_down(attended: Tensor, hidden: Tensor, case: Case, modules: Any) -> Tensor:
    """The formula, with the weights that the programs drop."""
    attention_norm, inner, outer, norm = modules

    def dropped(numbers: Tensor, seed: Tensor) -> Tensor:
        if not case.rate:
            return numbers
        kept = kept_weights(seed, case.rate, numbers.flatten(0, 1)[None, None])
        return numbers * kept.view_as(numbers) / (1 - case.rate)

    states = attention_norm(hidden + dropped(attended, SEEDS[0]))
    active = dropped(ACTIVATIONS[case.activation](inner(states)), SEEDS[1])
    return norm(states + dropped(outer(active), SEEDS[2]))


def results(case: Case, dtype: torch.dtype, *, ours: bool) -> list[Tensor]:
    """The output, and the gradients of both inputs and all weights, of numbers that the dtype can hold."""
    modules = [module.to(dtype) for module in case.modules()]
    generator = torch.Generator().manual_seed(2)
    shape = SAMPLES, QUERIES, case.width
    attended, hidden, towards = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    if not ours:
        modules, towards = [module.double() for module in modules], towards.double()
        attended, hidden = attended.double(), hidden.double()
    attended, hidden = attended.requires_grad_(), hidden.requires_grad_()
    if ours:
        settings = settings_of(modules[0], case.activation, case.rate, case.rate)
        assert settings is not None
        output = after_attention(attended, hidden, SEEDS if case.rate else None, settings, *modules)
    else:
        output = written_down(attended, hidden, case, modules)
    weights = [parameter for module in modules for parameter in module.parameters()]
    return [output, *torch.autograd.grad((output * towards).sum(), [attended, hidden, *weights])]


CASES = [
    Case("relu", True, 0.1),
    Case("gelu_tanh", False, 0.0),
    *(
        pytest.param(Case(activation, centered, rate, *sizes), marks=pytest.mark.full)
        for activation in ACTIVATIONS
        for centered in (True, False)
        for rate in (0.0, 0.4)
        for sizes in ((20, 150), (64, 128))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_are_those_of_the_formula(case: Case):
    for ours, exact in zip(results(case, torch.float32, ours=True), results(case, torch.float32, ours=False), strict=True):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("activation", ["gelu", pytest.param("silu", marks=pytest.mark.full)])
def test_in_bf16_they_are_rounded(activation: str):
    case = Case(activation, True, 0.2)
    for ours, exact in zip(results(case, torch.bfloat16, ours=True), results(case, torch.bfloat16, ours=False), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - exact).abs().max() <= 0.03 * exact.abs().max()


def test_the_same_seeds_give_the_same_bits():
    case = Case("silu", True, 0.5)
    for once, again in zip(results(case, torch.float32, ours=True), results(case, torch.float32, ours=True), strict=True):
        assert torch.equal(once, again)


def test_a_norm_without_weights_and_other_norms_have_no_program():
    assert settings_of(nn.LayerNorm(8, elementwise_affine=False), "relu", 0.1, 0.1) is None
    assert settings_of(nn.GroupNorm(2, 8), "relu", 0.1, 0.1) is None
    assert settings_of(nn.LayerNorm(16384), "relu", 0.1, 0.1) is None


def test_a_row_fits_into_the_registers_of_a_program():
    for width in (20, 512, 768, 1024, 4096, 8192):
        tile = norm_tile(width)
        assert tile.columns >= width
        assert tile.rows * tile.columns / (32 * tile.warps) <= 32
    assert partial_sums(100, 3, torch.empty(1, device="meta")).shape == (100, 3)


@pytest.mark.full
def test_the_operators_are_what_torch_expects_of_one():
    operators, seed = torch.ops.xlpretrain, SEEDS[0]
    rows, weight = torch.randn(4, 20), torch.randn(20)
    for bias in (weight, None):
        torch.library.opcheck(operators.add_norm, (rows, rows, weight, bias, seed, 0.3, 1e-5, bias is not None))
    _, total, center, factor = operators.add_norm(rows, rows, weight, weight, seed, 0.3, 1e-5, True)
    saved = rows, total, center, factor, weight, seed
    torch.library.opcheck(operators.add_norm_backward, (*saved, torch.zeros(2, 70), 5, 0.3, True, True))
    torch.library.opcheck(operators.activate, (rows, weight, seed, 0.3, "gelu"))
    torch.library.opcheck(
        operators.activate_backward, (rows, rows, weight, seed, torch.zeros(2, 30), 3, 0.3, "gelu")
    )
    torch.library.opcheck(operators.column_sums, (torch.randn(3, 30), torch.bfloat16))
