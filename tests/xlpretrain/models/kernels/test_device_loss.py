"""The loss in whole chunks, run on the CPU against the plain formula; its operations and memory on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xlpretrain.models.kernels import device_loss as module
from xlpretrain.models.kernels.chunked_loss import chunked_loss
from xlpretrain.models.kernels.device_loss import device_loss
from xlpretrain.planning.device_work import counted, kept_bytes

VOCABULARY, WIDTH, ROWS_OF_A_CHUNK = 61, 12, 7
META = torch.device("meta")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 positions, of which 2 at a time are copied to fp32."""
    monkeypatch.setattr(module, "_LOGITS", ROWS_OF_A_CHUNK * VOCABULARY)
    monkeypatch.setattr(module, "_FP32_LOGITS", 2 * VOCABULARY + 1)


def _compiled(*inputs: Tensor) -> Tensor:
    return torch.compile(device_loss, fullgraph=True, backend="aot_eager")(*inputs)


def _plain(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")


def _inputs(num_rows: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """Hidden states, weights and biases; targets; and an upstream gradient that differs by position."""
    torch.manual_seed(0)
    inputs = [torch.randn(*shape).to(dtype) for shape in ((num_rows, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))]
    return inputs, torch.randint(VOCABULARY, (num_rows,)), torch.rand(num_rows)


def _values_and_gradients(
    loss: Callable[..., Tensor], inputs: list[Tensor], targets: Tensor, towards: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    nll = loss(*inputs, targets)
    return [nll.detach(), *torch.autograd.grad((nll * towards.to(nll.dtype)).sum(), inputs)]


def _largest_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """The largest error of each tensor, as a share of its largest element."""
    pairs = [(ours.double(), plain.double()) for ours, plain in zip(found, expected, strict=True) if plain.numel()]
    return [float((ours - plain).abs().max() / plain.abs().max().clamp(min=1e-30)) for ours, plain in pairs]


@pytest.mark.parametrize(
    "loss", [device_loss, pytest.param(_compiled, marks=pytest.mark.full)], ids=["eager", "compiled"]
)
@pytest.mark.parametrize("num_rows", [0, 1, 6, 7, 8, 14, 50])
def test_in_fp32_it_is_the_plain_formula_in_float64(num_rows: int, loss: Callable[..., Tensor]):
    inputs = _inputs(num_rows, torch.float32)
    found = _values_and_gradients(loss, *inputs, torch.float32)
    expected = _values_and_gradients(_plain, *inputs, torch.float64)
    assert all(error < 1e-6 for error in _largest_errors(found, expected))
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize("num_rows", [1, 7, 50])
def test_in_bf16_losses_and_gradients_differ_by_the_rounding_of_logits(num_rows: int):
    inputs = _inputs(num_rows, torch.bfloat16)
    found = _values_and_gradients(device_loss, *inputs, torch.bfloat16)
    expected = _values_and_gradients(_plain, *inputs, torch.float32)
    assert [tensor.dtype for tensor in found] == [torch.float32] + 3 * [torch.bfloat16]
    assert all(error < 0.012 for error in _largest_errors(found, expected))


def test_gradients_in_bf16_keep_their_digits_where_the_target_is_almost_certain():
    """bf16's next number below 1 is 0.996: a probability of 0.9999, rounded, would give a gradient of 0."""
    hidden, weight = torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight[0] = 9.25
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    device_loss(hidden, weight, bias, torch.zeros(1, dtype=torch.int64)).sum().backward()
    assert bias.grad is not None
    expected = 1 / (1 + torch.tensor(9.25, dtype=torch.float64).exp())
    torch.testing.assert_close(bias.grad.double(), torch.stack([-expected, expected]), rtol=2**-8, atol=0)


@pytest.mark.full
def test_compiled_it_is_one_graph_for_all_numbers_of_positions_above_one():
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(device_loss, fullgraph=True, backend=backend)
    for num_rows in (9, 30, 2, 7, 8, 51):
        inputs, targets, _ = _inputs(num_rows, torch.float32)
        compiled(*inputs, targets)
    assert len(graphs) == 2  # for one number, then for any


def test_autocast_gives_logits_in_its_dtype_and_losses_in_fp32():
    inputs, targets, towards = _inputs(20, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = _values_and_gradients(partial(_as_on_a_device, chunked_loss), inputs, targets, towards, torch.float32)
    expected = _values_and_gradients(_plain, inputs, targets, towards, torch.float64)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    assert all(error < 0.015 for error in _largest_errors(found, expected))


def _as_on_a_device(loss: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        return loss(*inputs)


@pytest.mark.parametrize(("num_rows", "num_chunks"), [(32 * 77, 1), (16384, 2)])
def test_operations_and_kept_bytes_are_bounded(num_rows: int, num_chunks: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LOGITS", 2**28)
    monkeypatch.setattr(module, "_FP32_LOGITS", 2**27)
    shapes = ((num_rows, 768), (30522, 768), (30522,))
    inputs = [torch.empty(shape, dtype=torch.bfloat16, device=META, requires_grad=True) for shape in shapes]
    targets = torch.zeros(num_rows, dtype=torch.int64, device=META)
    with counted() as operations:
        chunked_loss(*inputs, targets).sum().backward()
    assert operations.from_cpu == []
    assert operations.total <= 10 + 17 * num_chunks
    assert operations.counts["addmm"] == 2 * num_chunks - 1  # the first chunk's logits are kept
    kept = kept_bytes(lambda: chunked_loss(*inputs, targets), without=[*inputs, targets])
    assert kept <= 2 * 2**28 + 4 * num_rows
