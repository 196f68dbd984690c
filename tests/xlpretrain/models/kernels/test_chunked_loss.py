"""The loss over a vocabulary in chunks, against torch's over all logits: values, gradients, and what it holds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from xlpretrain.models.kernels import chunked_loss
from xlpretrain.models.kernels.chunked_loss import ChunkedLoss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 1, 50])
def test_the_loss_in_chunks_is_that_of_all_logits(num_rows, dtype, monkeypatch):
    monkeypatch.setattr(chunked_loss, "_LOGITS", 31 * 7)
    torch.manual_seed(0)
    inputs = [torch.randn(*shape).to(dtype).requires_grad_() for shape in ((num_rows, 12), (31, 12), (31,))]
    targets, towards = torch.randint(31, (num_rows,)), torch.rand(num_rows)
    ours = ChunkedLoss.apply(*inputs, targets)
    plain = F.cross_entropy(F.linear(*inputs).float(), targets, reduction="none")
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    found = [torch.autograd.grad((nll * towards).sum(), inputs) for nll in (ours, plain)]
    for gradient, expected in zip(*found, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2 * float(expected.abs().max() if num_rows else 1)
        torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)


def test_all_logits_are_never_held(monkeypatch):
    monkeypatch.setattr(chunked_loss, "_LOGITS", 1000)
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *inputs: seen.append(linear(*inputs)) or seen[-1])
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(100, 4, requires_grad=True)
    ChunkedLoss.apply(hidden, weight, torch.zeros(100), torch.zeros(64, dtype=torch.int64)).sum().backward()
    assert len(seen) == 2 * 7 and max(logits.numel() for logits in seen) <= 1000
