"""Attention by blocks against attention written down: values, gradients, what is dropped, and what nobody may see.

Modules: cpu_attention.py, position_bias.py, projection.py.
"""

from __future__ import annotations

import pytest
import torch

from xlpretrain.models.attention import Attention, RelativeAttention
from xlpretrain.models.attention_mask import attention_mask, mask_of
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels import cpu_attention
from xlpretrain.models.kernels.cpu_attention import TiledAttention, TilePlan
from xlpretrain.models.kernels.dropout import Dropout, keep_scale
from xlpretrain.models.parts.positions import Sinusoids
from xlpretrain.models.relative_positions import RelativePositions, clamped_distances

ROWS, TOKENS, MEMORY, HEADS, WIDTH = 3, 9, 4, 3, 6
KEYS = MEMORY + TOKENS


@pytest.fixture(params=[(2**20, 128), (60, 2)], ids=["one block", "many blocks"])
def small_blocks(request, monkeypatch):
    monkeypatch.setattr(cpu_attention, "_ELEMENTS", request.param[0])
    monkeypatch.setattr(cpu_attention, "_QUERIES", request.param[1])


def _everything(attention, dtype, queries, memory, mask, *places):
    """The output and the gradient of all that has one, for the same gradient of the output. The memory has none."""
    queries, memory = queries.detach().to(dtype).requires_grad_(), memory.to(dtype)
    biases = [x.detach().requires_grad_() for x in places[1:]]
    output = attention(queries, memory, queries[:, :TOKENS], mask, *places[:1], *biases)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    names = dict(attention.named_parameters())
    gradients = torch.autograd.grad((output * weights).sum(), [queries, *biases, *names.values()], allow_unused=True)
    return [output, *(torch.zeros(()) if g is None else g for g in gradients)]


def _agree(attention, dtype, *arguments):
    found = {}
    for implementation in ("plain", "blocks", "sdpa"):
        attention.implementation = implementation
        found[implementation] = _everything(attention.to(dtype), dtype, *arguments)
    limit = 1e-5 if dtype == torch.float32 else 0.03
    for implementation in ("blocks", "sdpa"):
        for ours, plain in zip(found[implementation], found["plain"], strict=True):
            assert (ours - plain).abs().max() <= limit * plain.abs().max().clamp(min=0.1), implementation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_by_content_is_the_same_in_all_implementations(small_blocks, dtype):
    torch.manual_seed(0)
    attention = Attention(d_model=12, num_heads=HEADS, d_head=WIDTH, dropout=0.0, bias=True)
    valid = torch.arange(TOKENS) < torch.tensor([[9], [5], [1]])
    inputs = BackboneInput(
        torch.zeros(ROWS, TOKENS, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.int64), attention_mask=valid
    )
    mask = mask_of(attention_mask(inputs, mem_len=0, causal=False), dtype, may_be_blind=True)
    context = torch.randn(ROWS, TOKENS, 12)
    _agree(attention, dtype, context, context[:, :0], mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("causal", "directions"), [(True, 1), (False, 1), (False, 2)], ids=["causal", "two streams", "two directions"]
)
def test_attention_by_position_is_the_same_in_all_implementations(small_blocks, directions, causal, dtype):
    torch.manual_seed(0)
    attention = RelativeAttention(d_model=12, num_heads=HEADS, d_head=WIDTH, dropout=0.0, bidirectional=not causal)
    order = None if causal else torch.randint(0, 4, (ROWS, TOKENS))
    predict = None if causal else torch.stack([torch.randperm(TOKENS)[:5] for _ in range(ROWS)])
    inputs = BackboneInput(
        torch.zeros(ROWS, TOKENS, dtype=torch.int64), torch.tensor([4, 2, 0]), perm_rank=order, target_positions=predict
    )
    mask = mask_of(attention_mask(inputs, mem_len=MEMORY, causal=causal), dtype, may_be_blind=True)
    last, signs = 0 if causal else 1 - TOKENS, (1, -1)[:directions]
    distances = [clamped_distances(s * KEYS, s * last, clamp_len=None, device=torch.device("cpu")) for s in signs]
    encoded = [Sinusoids(12, base=10000.0)(these).to(dtype) for these in distances]
    positions = RelativePositions(torch.stack(encoded))
    if not causal:
        torch.nn.init.normal_(attention.segment_embedding)
        same = torch.rand(mask.added.shape) < 0.5
        turned = torch.tensor([False, True, True]) if directions == 2 else None
        positions = RelativePositions(torch.stack(encoded), turned, predict, same)
    biases = [torch.randn(HEADS, WIDTH).to(dtype) for _ in range(2 if causal else 3)]
    queries = torch.randn(ROWS, mask.added.shape[1], 12)
    _agree(attention, dtype, queries, torch.randn(ROWS, MEMORY, 12), mask, positions, *biases)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_weights_that_were_kept(small_blocks, dtype):
    """Values that are unit vectors show the weights, so the same can be written down with what was dropped."""
    torch.manual_seed(0)
    plan = TilePlan(torch.zeros(2, TOKENS, TOKENS, dtype=dtype), None, 0.4, seed=5)
    query, key = (torch.randn(2, TOKENS, HEADS, TOKENS, dtype=dtype, requires_grad=True) for _ in range(2))
    value = torch.eye(TOKENS, dtype=dtype)[None, :, None].repeat(2, 1, HEADS, 1).requires_grad_()
    shown = TiledAttention.apply(query, key, value, None, None, None, plan)
    kept = (shown.detach() != 0).transpose(1, 2) * keep_scale(0.4, dtype)
    weights = torch.einsum("bqnh,bknh->bnqk", query, key).softmax(-1) * kept
    written = torch.einsum("bnqk,bknh->bqnh", weights.to(dtype), value)
    towards = torch.randn_like(shown)
    limit = 1e-5 if dtype == torch.float32 else 0.03
    assert (shown - written).abs().max() < limit
    gradients = [torch.autograd.grad((x * towards).sum(), [query, key, value]) for x in (shown, written)]
    for ours, plain in zip(*gradients, strict=True):
        assert (ours - plain).abs().max() <= limit * plain.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_expectation(dtype):
    torch.manual_seed(0)
    ones = torch.ones(7, 99991, dtype=dtype, requires_grad=True)
    dropout = Dropout(0.3)
    dropped = dropout(ones)
    found = dropped.detach().float()
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=3e-3)
    assert float(found.mean()) == pytest.approx(1, abs=5e-3)
    (gradient,) = torch.autograd.grad(dropped.sum(), ones)
    assert torch.equal(gradient, dropped)
    assert not torch.equal(dropout(ones), dropped)
    torch.manual_seed(0)
    assert torch.equal(dropout(ones), dropped)
    assert dropout.eval()(ones) is ones


def test_what_is_dropped_in_a_row_says_nothing_of_the_next():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(512, 4096, dtype=torch.bfloat16)) != 0).float()
    for other in (kept.roll(1, 1), kept.roll(2, 1), kept.roll(1, 0), kept.roll(4, 1)):
        correlation = float(((kept - 0.5) * (other - 0.5)).mean()) * 4
        assert abs(correlation) < 5 / kept.numel() ** 0.5
