"""The choice of torch's attention kernels. What they compute is in test_cpu_attention.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xlpretrain.models import TransformerXLConfig
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.sdpa import fused_attention, takes_packed
from xlpretrain.planning.device_work import counted


def _heads(num_positions: int, d_head: int) -> Tensor:
    return torch.empty(2, num_positions, 3, d_head, device="meta", requires_grad=True)


@pytest.mark.parametrize(("d_head", "pads"), [(41, 3), (48, 0)])
def test_heads_are_widened_with_zeros_to_a_multiple_of_eight(d_head: int, pads: int):
    with counted() as operations:
        attended = fused_attention(*(_heads(5, d_head) for _ in range(3)), None, dropout=0.0, scale=1.0)
    assert attended.shape == (2, 5, 3, d_head)
    assert operations.counts["constant_pad_nd"] == pads
    assert operations.counts["fused_attention"] == 1


def test_packing_needs_sixteen_bits_and_an_accelerator():
    assert takes_packed(torch.empty(1, dtype=torch.bfloat16, device="meta"))
    assert not takes_packed(torch.empty(1, dtype=torch.float32, device="meta"))
    assert not takes_packed(torch.empty(1, dtype=torch.bfloat16))


@pytest.mark.parametrize(("mem_len", "num_tokens"), [(3, 5), (0, 7), (8, 8)])
def test_distances_of_an_accelerator_run_on_to_a_multiple_of_eight(mem_len: int, num_tokens: int):
    model = TransformerXLConfig(num_layers=1, num_heads=2, d_model=16, d_ff=8).build(20).to("meta")
    seen: list[int] = []
    model.layers[0].attention.distance.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    tokens = torch.zeros(2, num_tokens, dtype=torch.int64, device="meta")
    model(BackboneInput(tokens, tokens[:, 0]), model.empty_memory(2, mem_len))[0].tokens.sum().backward()
    assert seen == [-(-(mem_len + num_tokens + 1) // 8) * 8]
