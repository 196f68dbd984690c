"""Packed samples against padded ones, and the kernels that an accelerator takes for them, counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xlpretrain.models import AlbertConfig, BertConfig
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.packing import pack, unpack, valid_tokens
from xlpretrain.planning.device_work import counted

SIZES = {"num_layers": 2, "num_heads": 2, "d_model": 16, "d_ff": 24, "max_positions": 9}
MODELS = {"bert": BertConfig(**SIZES), "albert": AlbertConfig(**SIZES, d_embed=8)}
LENGTHS = {"right": [9, 4, 0, 1], "left": [3, 9, 2, 5]}


def _inputs(side: str) -> BackboneInput:
    lengths, positions = np.array(LENGTHS[side])[:, None], np.arange(9)
    valid = positions < lengths if side == "right" else positions >= 9 - lengths
    valid_at, valid_from = valid_tokens(valid)
    return BackboneInput(
        torch.randint(20, (4, 9)),
        torch.zeros(4, dtype=torch.int64),
        attention_mask=torch.from_numpy(valid),
        valid_at=valid_at,
        valid_from=valid_from,
    )


@pytest.mark.parametrize("side", LENGTHS)
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_packed_samples_equal_padded_ones_in_states_and_gradients(config, side: str):
    torch.manual_seed(0)
    model, inputs = config.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0}).build(20), _inputs(side)
    found = []
    for packs in (False, True):
        model.packs = packs
        model.zero_grad()
        hidden, mems = model(inputs, model.empty_memory(4, 0))
        real = hidden.tokens[inputs.attention_mask]
        (real**3).sum().backward()
        assert mems.shape == model.empty_memory(4, 0).shape
        found.append([real.detach(), *(p.grad for p in model.parameters())])
    assert not hidden.tokens[~inputs.attention_mask].any()
    for packed, padded in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=2e-6)


def test_packing_is_undone_and_its_gradient_too():
    hidden, valid_at = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 5])
    packed = pack(hidden, valid_at)
    assert torch.equal(packed[0], hidden.flatten(0, 1)[[0, 1, 5]])
    kept = torch.tensor([[1.0, 1, 0], [0, 0, 1]], dtype=torch.float64)[..., None]
    assert torch.equal(unpack(packed, valid_at, batch_size=2, num_tokens=3), hidden * kept)
    assert torch.autograd.gradcheck(lambda x: pack(x, valid_at), hidden)
    assert torch.autograd.gradcheck(
        lambda x: unpack(x, valid_at, batch_size=2, num_tokens=3), packed.detach().requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_an_accelerator_takes_a_kernel_of_variable_length_and_drops_weights_in_it(config, dtype: torch.dtype):
    """In 16 bits; there is none for fp32, which keeps the mask. Nothing at all is masked without padding."""
    config = config.model_copy(update={"dropout": 0.1, "attention_dropout": 0.1})
    model = config.build(20).to(dtype).to("meta")
    padded = _inputs("right")
    valid_at, valid_from = valid_tokens(np.ones((4, 9), bool))
    for inputs, is_packed, is_masked in (
        (padded, dtype == torch.bfloat16, dtype == torch.float32),
        (replace(padded, valid_at=valid_at, valid_from=valid_from), False, False),
        (replace(padded, valid_at=None, valid_from=None), False, True),
    ):
        with counted() as operations:
            hidden, _ = model(inputs.map(lambda tensor: tensor.to("meta")), model.empty_memory(4, 0))
            hidden.tokens.sum().backward()
        assert hidden.tokens.shape == (4, 9, 16)
        counts = operations.counts
        kernels = ("_flash_attention_forward", "_flash_attention_backward")
        assert [counts[name] for name in kernels] == [2 * is_packed] * 2
        assert [counts[name] for name in ("fused_attention", "fused_attention_backward")] == [2 * (not is_packed)] * 2
        assert (counts["masked_fill"] > 1) == is_masked
        assert all(p.grad is not None for p in model.parameters())
