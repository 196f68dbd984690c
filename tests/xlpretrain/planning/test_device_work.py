"""The counts of operations and of kept bytes, on graphs small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from xlpretrain.planning.device_work import counted, kept_bytes

META = torch.device("meta")


def test_products_and_activations_count_and_views_do_not():
    x, weight = torch.empty(4, 3, device=META), torch.empty(5, 3, device=META, requires_grad=True)
    with counted() as forward:
        result = F.linear(x, weight).view(2, 10).t().relu().sum()
    assert forward.counts == {"mm": 1, "relu": 1, "sum": 1}
    with counted() as backward:
        result.backward()
    # The gradient of a sum is expanded, not computed; of the product only the weight's gradient is needed.
    assert backward.counts == {"ones_like": 1, "threshold_backward": 1, "mm": 1}
    assert (forward.from_cpu, backward.from_cpu) == ([], [])


def test_a_second_gradient_is_added():
    weight = torch.empty(5, 3, device=META, requires_grad=True)
    (weight * 2).sum().backward()
    with counted() as backward:
        (weight * 2).sum().backward()
    assert backward.counts["add_"] + backward.counts["add"] == 1


def test_fused_attention_and_dropout_are_one_operation_each():
    query, key, value = (torch.empty(2, 4, 8, 16, device=META, requires_grad=True) for _ in range(3))
    with counted() as forward:
        result = F.dropout(F.scaled_dot_product_attention(query, key, value), 0.1)
    assert forward.counts == {"fused_attention": 1, "native_dropout": 1}
    with counted() as backward:
        result.backward(torch.empty_like(result))
    assert backward.counts == {"native_dropout_backward": 1, "fused_attention_backward": 1}


def test_tensors_made_on_the_cpu_are_named():
    with counted() as seen:
        torch.empty(3, device=META) + torch.ones(3).sum()
    assert seen.from_cpu[0] == "ones"


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.nonzero()])
def test_a_wait_of_the_host_raises(wait):
    with pytest.raises((RuntimeError, NotImplementedError)), counted():
        wait(torch.empty(3, device=META))


def test_kept_bytes_are_those_of_distinct_storages():
    """A product keeps its two inputs, relu its output; a view of a kept tensor is no second one."""
    x, weight = torch.empty(4, 3, device=META, requires_grad=True), torch.empty(5, 3, device=META, requires_grad=True)

    def forward() -> torch.Tensor:
        hidden = F.linear(x, weight).relu()
        return hidden.view(20) * hidden.flatten().detach()

    output_bytes = 4 * 5 * 4
    assert kept_bytes(forward) == x.nbytes + weight.nbytes + output_bytes
    assert kept_bytes(forward, without=[weight]) == x.nbytes + output_bytes


def test_attention_keeps_its_inputs_its_output_and_a_number_per_query():
    query, key, value = (torch.empty(2, 4, 8, 16, device=META, requires_grad=True) for _ in range(3))
    kept = kept_bytes(lambda: F.scaled_dot_product_attention(query, key, value))
    assert kept == 4 * query.nbytes + 2 * 4 * 8 * 4
