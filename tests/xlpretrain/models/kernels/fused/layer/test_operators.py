"""The programs of a layer, interpreted on the CPU, against formulas in float64: outputs, gradients and dropout.

Modules: programs.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.layer_table import cases
from xlpretrain.extras import is_missing
from xlpretrain.models.kernels.fused.layer.operators import (
    activate,
    activate_backward,
    add_norm,
    add_norm_backward,
    bias_queries,
    bias_queries_backward,
    column_sums,
    partial_sums,
)
from xlpretrain.models.kernels.fused.reference import kept_weights
from xlpretrain.models.parts.feed_forward import ACTIVATIONS

ROWS, WIDTH, RATE = 71, 20, 0.3
SEED = torch.tensor([5, -6], dtype=torch.int32)
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.full)]
pytestmark = pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def exact(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


def dropped(numbers: Tensor) -> Tensor:
    return numbers * kept_weights(SEED, RATE, numbers[None, None])[0, 0] / (1 - RATE)


def same(ours: Any, right: Any) -> None:
    for found, expected in zip(ours, right, strict=True):
        limit = 1e-5 if found.dtype == torch.float32 else 0.03
        assert (found - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centered", [True, False])
def test_norm_of_a_sum(centered: bool, dtype: torch.dtype):
    added, residual, towards = (random(ROWS, WIDTH + i, dtype=dtype)[:, :WIDTH].contiguous() for i in range(3))
    weight, bias = random(WIDTH, dtype=dtype), random(WIDTH + 1, dtype=dtype)[:WIDTH].clone()
    inputs = exact(added, residual, weight, bias)
    total = inputs[1] + dropped(inputs[0])
    if centered:
        output = F.layer_norm(total, (WIDTH,), inputs[2], inputs[3], 1e-3)
    else:
        output, inputs = F.rms_norm(total, (WIDTH,), inputs[2], 1e-3), inputs[:3]
    d_added, d_residual, *d_weights = torch.autograd.grad((output * towards.double()).sum(), inputs)
    ours, *saved = add_norm(added, residual, weight, bias if centered else None, SEED, RATE, 1e-3, centered)
    same([ours, saved[0]], [output, total])
    partials = partial_sums(ROWS, 4 + len(inputs[2:]) * WIDTH + WIDTH, added).zero_()
    gradients = add_norm_backward(towards, *saved, weight, SEED, partials, 4, RATE, centered, True)
    same(gradients, [d_residual, d_added])
    sums = column_sums(partials, torch.float32)
    assert not sums[:4].any()
    limit = 1e-5 if dtype == torch.float32 else 0.03
    for found, expected in zip(sums[4:].split(WIDTH), [*d_weights, d_added.sum(0)], strict=True):
        assert (found - expected).abs().max() <= limit * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_of_a_sum(activation: str, dtype: torch.dtype):
    inner, bias, towards = (random(*shape, dtype=dtype) for shape in ((ROWS, 150), (150,), (ROWS, 150)))
    inputs = exact(inner, bias)
    output = dropped(ACTIVATIONS[activation](inputs[0] + inputs[1]))
    d_inner, d_bias = torch.autograd.grad((output * towards.double()).sum(), inputs)
    partials = partial_sums(ROWS, 150, inner)
    d_ours, again = activate_backward(towards, inner, bias, SEED, partials, 0, RATE, activation)
    ours = activate(inner, bias, SEED, RATE, activation)
    assert torch.equal(ours, again)
    same([ours, d_ours, column_sums(partials, dtype)], [output, d_inner, d_bias])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("segments", [True, False])
def test_biases_of_queries(segments: bool, dtype: torch.dtype):
    heads, width, shape = 2, 5, (3, 7, 2, 5)
    query, embedding = random(*shape, dtype=dtype), random(2, heads, width, dtype=dtype)
    biases = [random(heads, width + i, dtype=dtype)[:, :width].contiguous() for i in range(3)]
    towards = [random(*shape[:3], width + i, dtype=dtype)[..., :width].contiguous() for i in range(2)]
    of_segment = random(heads, *shape[:2], 2, dtype=dtype)
    inputs = exact(query, *biases, embedding)
    content, position = inputs[0] + inputs[1], inputs[0] + inputs[2]
    scores = torch.einsum("bqnh,snh->nbqs", inputs[0] + inputs[3], inputs[4])
    total = (content * towards[0]).sum() + (position * towards[1]).sum()
    if segments:
        total = total + (scores * of_segment).sum()
    learned = inputs if segments else inputs[:3]
    d_query, *d_weights = torch.autograd.grad(total, learned)
    more = (biases[2], embedding) if segments else (None, None)
    found = bias_queries(query, biases[0], biases[1], *more)
    same(found if segments else found[:2], [content, position, scores] if segments else [content, position])
    partials = partial_sums(21, sum(each.numel() for each in d_weights), query)
    ours = bias_queries_backward(
        *towards, of_segment if segments else found[2], found[0], biases[0], *more, partials, 0
    )
    same([ours, column_sums(partials, dtype)], [d_query, torch.cat([each.flatten() for each in d_weights])])


@pytest.mark.full
def test_the_operators_are_what_torch_expects_of_one():
    operators, rows, weight = torch.ops.xlpretrain, random(4, WIDTH), random(WIDTH)
    for bias in (weight, None):
        torch.library.opcheck(operators.add_norm, (rows, rows, weight, bias, SEED, 0.3, 1e-5, bias is not None))
    _, *saved = add_norm(rows, rows, weight, weight, SEED, 0.3, 1e-5, True)
    torch.library.opcheck(
        operators.add_norm_backward, (rows, *saved, weight, SEED, torch.zeros(2, 70), 5, 0.3, True, True)
    )
    torch.library.opcheck(operators.activate, (rows, weight, SEED, 0.3, "gelu"))
    torch.library.opcheck(operators.activate_backward, (rows, rows, weight, SEED, torch.zeros(2, 30), 3, 0.3, "gelu"))
    torch.library.opcheck(operators.column_sums, (random(3, 30), torch.bfloat16))
    query, bias, embedding = random(1, 4, 2, 5), random(2, 5), random(2, 2, 5)
    torch.library.opcheck(operators.bias_queries, (query, bias, bias, bias, embedding))
    scores, partials = random(2, 1, 4, 2), torch.zeros(2, 50)
    torch.library.opcheck(
        operators.bias_queries_backward, (query, query, scores, query, bias, bias, embedding, partials, 0)
    )


def test_each_tile_fits_into_registers():
    for program, _, tile, _ in cases():
        assert tile.rows * tile.columns / (32 * tile.warps) <= 32, program
    assert partial_sums(100, 3, torch.empty(1, device="meta")).shape == (100, 3)
