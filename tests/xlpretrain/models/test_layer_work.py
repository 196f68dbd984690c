"""Budgets of a layer on an accelerator: operations, and bytes kept for the backward pass, on the meta device.

A layer's share is the difference between a model of four layers and one of three.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks.cases import Case, case
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain.planning.device_work import counted, kept_bytes

OPERATIONS = {"bert": 60, "albert": 60, "transformer_xl": 70, "xlnet": 80}
"""Forward and backward, in the second micro-batch of a step."""
OPERATIONS_IN_TWO_DIRECTIONS = 82
"""The same of XLNet, if half of the samples are read from right to left, as in training."""
KEPT = {"bert": 36.0, "albert": 36.0, "transformer_xl": 81.0, "xlnet": 88.0}
"""In bf16 with dropout, per new token and layer, in units of d_model bytes. The last two keep scores: 2 bytes for each
of N Q K, which is 32 for Transformer-XL and 33 for XLNet, whose predictions are further queries."""


def _case(model_name: str) -> Case:
    return case(model_name, "base", rows=32, precision="bf16", threads=1)


@cache
def _work(model_name: str, num_layers: int, *, both_ways: bool = False) -> tuple[int, int]:
    of = replace(_case(model_name), num_layers=num_layers)
    with torch.device("meta"):
        model, objective = pretraining_model(of)
    model = model.to(torch.bfloat16)
    batch = make_batch(of, objective)
    if both_ways:
        batch = replace(batch, inputs=replace(batch.inputs, reversed=torch.arange(of.rows) % 2 == 1))
    batch = batch.to(torch.device("meta"))
    mems = model.backbone.empty_memory(of.rows, of.mem_len)

    def forward() -> torch.Tensor:
        return model.backbone(batch.inputs, mems)[0].tokens

    forward().sum().backward()
    with counted() as operations:
        forward().sum().backward()
    assert operations.from_cpu == []
    return operations.total, kept_bytes(forward, without=iter(model.parameters()))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_layer_stays_within_its_operations_and_kept_bytes(name: str):
    (three, kept_three), (four, kept_four) = _work(name, 3), _work(name, 4)
    of = _case(name)
    assert four - three <= OPERATIONS[name]
    assert (kept_four - kept_three) / (of.rows * of.seq_len * of.d_model) <= KEPT[name]


def test_xlnet_base_in_two_directions():
    (three, kept_three), (four, kept_four) = (_work("xlnet", layers, both_ways=True) for layers in (3, 4))
    assert four - three <= OPERATIONS_IN_TWO_DIRECTIONS
    assert (kept_three + 9 * (kept_four - kept_three)) / 32 <= 505 * 2**20
