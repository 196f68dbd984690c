"""Relative attention: the shift, what may be seen, and what happens where nothing may."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.models.attention import RelativeAttention, relative_shift, visible_keys
from xlpretrain.models.layers import encode_distances


def _attention() -> RelativeAttention:
    torch.manual_seed(0)
    return RelativeAttention(d_model=8, num_heads=2, d_head=3, dropout=0.0)


@pytest.mark.parametrize(("num_queries", "mem_len"), [(1, 0), (1, 5), (4, 0), (4, 1), (4, 3), (3, 9)])
def test_shift_equals_a_gather_by_distance(num_queries, mem_len):
    num_keys = mem_len + num_queries
    by_distance = torch.randn(2, 3, num_queries, num_keys + 1, requires_grad=True)
    shifted = relative_shift(by_distance)
    assert shifted.shape == (2, 3, num_queries, num_keys)
    weights = torch.randn(2, 3, num_queries, num_keys).tril(mem_len)
    (gradient,) = torch.autograd.grad((shifted * weights).sum(), by_distance)
    expected_gradient = torch.zeros_like(by_distance)
    for query in range(num_queries):
        for key in range(mem_len + query + 1):
            column = num_keys - (mem_len + query - key)  # columns are the distances num_keys, .., 1, 0
            assert torch.equal(shifted[:, :, query, key], by_distance[:, :, query, column])
            expected_gradient[:, :, query, column] = weights[:, :, query, key]
    assert torch.equal(gradient, expected_gradient)


def test_shift_copies_nothing():
    by_distance = torch.randn(2, 3, 4, 8)
    assert relative_shift(by_distance).untyped_storage().data_ptr() == by_distance.untyped_storage().data_ptr()


@pytest.mark.parametrize("clamp_len", [None, 3])
@pytest.mark.parametrize("same_length", [False, True])
@pytest.mark.parametrize(("num_queries", "mem_len"), [(4, 0), (4, 6), (5, 3)])
def test_attention_equals_a_gather_from_the_equation(num_queries, mem_len, clamp_len, same_length):
    attention, num_keys = _attention(), mem_len + num_queries
    context = torch.randn(2, num_keys, 8)
    remembered = torch.tensor([mem_len, mem_len // 2])
    content, position = torch.randn(2, 3), torch.randn(2, 3)
    visible = visible_keys(remembered, num_queries=num_queries, mem_len=mem_len, same_length=same_length)
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    distances = encode_distances(num_keys, 8, clamp_len=clamp_len, device=torch.device("cpu"), dtype=torch.float32)
    ours = attention(context[:, mem_len:], context, distances, mask, content_bias_NH=content, position_bias_NH=position)

    for row in range(2):
        for query in range(num_queries):
            heads = []
            for head in range(2):
                part = slice(head * 3, head * 3 + 3)
                q = attention.query.weight[part] @ context[row, mem_len + query]
                scores, values = [], []
                for key in range(num_keys):
                    distance = mem_len + query - key
                    is_own = key >= mem_len - int(remembered[row])
                    is_near = not (same_length and mem_len) or distance < mem_len
                    if distance < 0 or not is_own or not is_near:
                        continue
                    clamped = distance if clamp_len is None else min(distance, clamp_len)
                    angles = clamped / 10000 ** (torch.arange(0, 8, 2) / 8)
                    r = attention.distance.weight[part] @ torch.cat([angles.sin(), angles.cos()])
                    k = attention.key.weight[part] @ context[row, key]
                    scores.append(((q + content[head]) @ k + (q + position[head]) @ r) / 3**0.5)
                    values.append(attention.value.weight[part] @ context[row, key])
                heads.append(torch.softmax(torch.stack(scores), 0) @ torch.stack(values))
            torch.testing.assert_close(ours[row, query], attention.output.weight @ torch.cat(heads))


def test_same_length_lets_every_query_see_equally_many_keys():
    full = visible_keys(torch.tensor([6]), num_queries=4, mem_len=6, same_length=True)
    assert full.sum(-1).tolist() == [[6, 6, 6, 6]]
    assert visible_keys(torch.tensor([6]), num_queries=4, mem_len=6, same_length=False).sum(-1).tolist() == [
        [7, 8, 9, 10]
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_may_see_nothing_gives_no_nan(dtype):
    attention = _attention().to(dtype)
    context = torch.randn(1, 5, 8, dtype=dtype, requires_grad=True)
    distances = encode_distances(5, 8, clamp_len=None, device=torch.device("cpu"), dtype=dtype)
    mask = torch.full((1, 3, 5), torch.finfo(dtype).min, dtype=dtype)
    bias = torch.randn(2, 3, dtype=dtype)
    output = attention(context[:, 2:], context, distances, mask, content_bias_NH=bias, position_bias_NH=bias)
    output.sum().backward()
    assert output.isfinite().all()
    assert context.grad.isfinite().all()


def test_positions_are_exact_before_they_are_rounded_to_bf16():
    exact = encode_distances(700, 8, clamp_len=None, device=torch.device("cpu"), dtype=torch.float32)
    rounded = encode_distances(700, 8, clamp_len=None, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    angle = torch.tensor(699.0)
    torch.testing.assert_close(exact[1, [0, 4]], torch.stack([angle.sin(), angle.cos()]))
