"""Relative attention: the shift, what may be seen, and what happens where nothing may."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.models.attention import RelativeAttention
from xlpretrain.models.attention_mask import attention_mask, mask_of
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.parts.positions import Sinusoids
from xlpretrain.models.relative_positions import (
    RelativePositions,
    clamped_distances,
    gather_distances,
    relative_shift,
)


def _attention() -> RelativeAttention:
    torch.manual_seed(0)
    return RelativeAttention(d_model=8, num_heads=2, d_head=3, dropout=0.0, bidirectional=False)


def _causal(remembered, *, num_queries, mem_len, same_length=False) -> torch.Tensor:
    inputs = BackboneInput(torch.zeros(len(remembered), num_queries, dtype=torch.int64), torch.tensor(remembered))
    return attention_mask(inputs, mem_len=mem_len, causal=True, same_length=same_length)


def _encode(first, last, *, clamp_len=None) -> torch.Tensor:
    distances = clamped_distances(first, last, clamp_len=clamp_len, device=torch.device("cpu"))
    return Sinusoids(8, base=10000.0)(distances)


@pytest.mark.parametrize(("num_queries", "mem_len"), [(1, 0), (1, 5), (4, 0), (4, 1), (4, 3), (3, 9)])
def test_shift_equals_a_gather_by_distance(num_queries, mem_len):
    num_keys = mem_len + num_queries
    by_distance = torch.randn(2, 3, num_queries, num_keys + 1, requires_grad=True)
    shifted = relative_shift(by_distance, num_keys)
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
    assert relative_shift(by_distance, 7).untyped_storage().data_ptr() == by_distance.untyped_storage().data_ptr()


@pytest.mark.parametrize("clamp_len", [None, 3])
@pytest.mark.parametrize("same_length", [False, True])
@pytest.mark.parametrize(("num_queries", "mem_len"), [(4, 0), (4, 6), (5, 3)])
def test_attention_equals_a_gather_from_the_equation(num_queries, mem_len, clamp_len, same_length):
    attention, num_keys = _attention(), mem_len + num_queries
    context = torch.randn(2, num_keys, 8)
    remembered = [mem_len, mem_len // 2]
    content, position = torch.randn(2, 3), torch.randn(2, 3)
    visible = _causal(remembered, num_queries=num_queries, mem_len=mem_len, same_length=same_length)
    positions = RelativePositions(_encode(num_keys, 0, clamp_len=clamp_len)[None])
    memory, tokens = context.split([mem_len, num_queries], dim=1)
    ours = attention(
        tokens, memory, tokens, mask_of(visible, torch.float32, may_be_blind=True), positions, content, position
    )

    for row in range(2):
        for query in range(num_queries):
            heads = []
            for head in range(2):
                part = slice(head * 3, head * 3 + 3)
                q = attention.query.weight[part] @ context[row, mem_len + query]
                scores, values = [], []
                for key in range(num_keys):
                    distance = mem_len + query - key
                    is_own = key >= mem_len - remembered[row]
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


@pytest.mark.parametrize(("num_queries", "mem_len"), [(4, 6), (5, 5), (1, 3)])
def test_with_one_more_position_same_length_is_that_of_the_tensorflow_code(num_queries: int, mem_len: int):
    """tf/model.py, `_create_mask`: a key is hidden after the query, and below the diagonal of the first Q keys."""
    ones = torch.ones(num_queries, num_queries)
    hidden = torch.cat([torch.zeros(num_queries, mem_len), ones.triu(1)], dim=1)
    hidden[:, :num_queries] += ones.tril(-1)
    visible = _causal([mem_len + 1], num_queries=num_queries, mem_len=mem_len + 1, same_length=True)[0]
    assert not visible[:, 0].any()  # the position more is never seen itself
    assert torch.equal(visible[:, 1:], hidden == 0)
    assert visible.sum(1).tolist() == [mem_len + 1] * num_queries


def test_same_length_lets_every_query_see_equally_many_keys():
    assert _causal([6], num_queries=4, mem_len=6, same_length=True).sum(-1).tolist() == [[6, 6, 6, 6]]
    assert _causal([6], num_queries=4, mem_len=6).sum(-1).tolist() == [[7, 8, 9, 10]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_may_see_nothing_gets_nothing(dtype):
    attention = _attention().to(dtype)
    context = torch.randn(1, 5, 8, dtype=dtype, requires_grad=True)
    mask = mask_of(torch.zeros(1, 3, 5, dtype=torch.bool), dtype, may_be_blind=True)
    bias = torch.randn(2, 3, dtype=dtype)
    memory, tokens = context.split([2, 3], dim=1)
    output = attention(tokens, memory, tokens, mask, RelativePositions(_encode(5, 0)[None].to(dtype)), bias, bias)
    output.sum().backward()
    assert not output.any()
    assert not context.grad.any()


def test_positions_are_exact_in_a_model_of_bf16():
    exact = _encode(700, 0)
    asked = clamped_distances(700, 0, clamp_len=None, device=torch.device("cpu"))
    assert torch.equal(Sinusoids(8, base=10000.0).to(torch.bfloat16)(asked), exact)
    angle = torch.tensor(699.0)
    torch.testing.assert_close(exact[1, [0, 4]], torch.stack([angle.sin(), angle.cos()]))


@pytest.mark.parametrize(("num_tokens", "mem_len"), [(1, 0), (1, 5), (4, 0), (4, 3), (3, 9)])
def test_both_streams_equal_a_gather_by_distance_of_either_sign(num_tokens, mem_len):
    num_keys = mem_len + num_tokens
    distances = list(range(num_keys, -num_tokens, -1))
    predict = torch.randint(num_tokens, (2, 5))
    for_tokens, for_predictions = (torch.randn(2, 3, n, len(distances)) for n in (num_tokens, 5))
    shifted = relative_shift(for_tokens, num_keys)
    gathered = gather_distances(for_predictions, predict, num_tokens=num_tokens, num_keys=num_keys)
    assert (shifted.shape, gathered.shape) == ((2, 3, num_tokens, num_keys), (2, 3, 5, num_keys))
    for key in range(num_keys):
        for query in range(num_tokens):
            column = distances.index(mem_len + query - key)
            assert torch.equal(shifted[..., query, key], for_tokens[..., query, column])
        for row in range(2):
            for i, at in enumerate(predict[row].tolist()):
                column = distances.index(mem_len + at - key)
                assert torch.equal(gathered[row, :, i, key], for_predictions[row, :, i, column])


def test_distances_go_both_ways_and_are_clamped_both_ways():
    forth, back = _encode(5, -3), _encode(-5, 3)
    assert torch.equal(back, _encode(3, -5).flip(0))
    torch.testing.assert_close(back, torch.cat([-forth[:, :4], forth[:, 4:]], dim=1))  # sin(-x) = -sin x
    clamped = _encode(5, -3, clamp_len=2)
    assert torch.equal(clamped, torch.cat([forth[3:4].expand(4, -1), forth[4:7], forth[7:8].expand(2, -1)]))


def test_the_order_says_who_sees_whom():
    """Rank -1 for the context; a token sees its own rank, a prediction only lower ones, and nobody sees padding."""
    inputs = BackboneInput(
        tokens=torch.zeros(1, 5, dtype=torch.int64),
        mem_valid_len=torch.tensor([1]),
        attention_mask=torch.tensor([[True, True, True, True, False]]),
        perm_rank=torch.tensor([[-1, 2, -1, 1, -1]]),
        target_positions=torch.tensor([[1, 3]]),
    )
    visible = attention_mask(inputs, mem_len=2, causal=False)
    assert visible.int().tolist() == [
        [
            [0, 1, 1, 0, 1, 0, 0],
            [0, 1, 1, 1, 1, 1, 0],
            [0, 1, 1, 0, 1, 0, 0],
            [0, 1, 1, 0, 1, 1, 0],
            [0, 1, 1, 0, 1, 0, 0],
            [0, 1, 1, 0, 1, 1, 0],
            [0, 1, 1, 0, 1, 0, 0],
        ]
    ]
    without = BackboneInput(inputs.tokens, inputs.mem_valid_len, target_positions=inputs.target_positions)
    visible = attention_mask(without, mem_len=2, causal=False, initial_zeros=True)
    assert visible.sum(-1).tolist() == [[7, 7, 7, 7, 7, 6, 6]]
    assert not visible[0, 5, 2 + 1] and not visible[0, 6, 2 + 3]
