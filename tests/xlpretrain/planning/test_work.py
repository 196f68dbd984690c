"""Counted work against torch's counter, the model's formula, and sizes by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from xlpretrain.config import run_config
from xlpretrain.planning.work import ATTENTION, LOSS, PRODUCT, UPDATE, Work, WorkCounter, work_of

TINY = ["model.num_layers=2", "model.d_model=64", "model.num_heads=2", "model.d_ff=128", "micro_batch_size=4"]


def tiny(name: str, *overrides: str) -> run_config.RunConfig:
    return run_config.load(Path(f"configs/{name}.yaml"), [*TINY, "global_batch_size=8", *overrides])


def flops_of(work: Work, *kinds: str, part: str | None = None) -> int:
    return sum(
        operation.flops * count
        for operation, count in work.step.items()
        if operation.kind in kinds and part in (None, operation.part)
    )


def test_flops_are_those_of_torchs_counter():
    layers = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 8)).to("meta")
    inputs = torch.empty(5, 16, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as theirs:
        layers(inputs).sum().backward()
    with WorkCounter("meta") as ours:
        layers(inputs).sum().backward()
    assert sum(each.flops * count for each, count in ours.operations.items()) == theirs.get_total_flops()
    assert theirs.get_total_flops() == 3 * 2 * 5 * (16 * 32 + 32 * 8)


def test_products_in_place_count_too():
    total, left, right = (torch.empty(size, device="meta") for size in ((3, 5), (3, 4), (4, 5)))
    with WorkCounter("meta") as counter:
        total.addmm_(left, right)
    [(operation, count)] = counter.operations.items()
    assert (operation.flops, count) == (2 * 3 * 4 * 5, 1)
    assert operation.num_bytes == 4 * (3 * 5 + 3 * 4 + 4 * 5)


@pytest.mark.parametrize("name", ["bert_small", "quickstart"])
def test_products_of_a_step_are_those_of_the_models_formula(name: str):
    """Attention apart: fused kernels compute scores once more. Memory: the projection of distances is not in it."""
    config = tiny(name)
    with torch.device("meta"):
        model = config.build_model(1000)
    objective = config.objective
    formula = model.flops_per_token(objective.seq_len, config.model.mem_len, objective.num_predictions)
    expected = formula * objective.seq_len * 4
    work = work_of(config, vocab_size=1000, num_ranks=2, device="cuda")
    counted = flops_of(work, PRODUCT) + flops_of(work, ATTENTION) * 12 / 14
    assert counted == pytest.approx(expected, rel=0.05 if name == "bert_small" else 0.25)
    assert flops_of(work, PRODUCT, part=LOSS) > 0


def test_more_micro_batches_repeat_the_passes_and_not_the_update():
    one = work_of(tiny("bert_small"), vocab_size=1000, num_ranks=2, device="cuda")
    two = work_of(tiny("bert_small", "micro_batch_size=2"), vocab_size=1000, num_ranks=2, device="cuda")
    assert (one.num_micro_batches, two.num_micro_batches) == (1, 2)
    assert flops_of(two, PRODUCT) == pytest.approx(flops_of(one, PRODUCT), rel=0.01)
    assert one.update == two.update


def test_an_update_of_adamw_moves_42_bytes_for_each_parameter():
    """Norm: 4; clipping: 8; gradient again: 4; three fp32 numbers read and written: 24; the bf16 weight: 2."""
    config = tiny("bert_small")
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in config.build_model(1000).parameters())
    work = work_of(config, vocab_size=1000, num_ranks=1, device="cuda")
    moved = sum(each.num_bytes * count for each, count in work.update.items())
    assert {each.part for each in work.update} == {UPDATE}
    assert moved == pytest.approx(42 * size, rel=1e-3)


def test_checkpointing_computes_layers_twice_in_the_forward_pass():
    once = work_of(tiny("bert_small"), vocab_size=1000, num_ranks=2, device="cuda")
    again = work_of(
        tiny("bert_small", "engine.activation_checkpointing=true"), vocab_size=1000, num_ranks=2, device="cuda"
    )
    layers = [flops_of(work, PRODUCT, part="layers") for work in (once, again)]
    assert 1.25 <= layers[1] / layers[0] < 1.34  # a third more, less what the backward pass needs no result of


def test_the_cpus_work_is_extended_from_few_samples():
    counted = work_of(tiny("bert_small", "micro_batch_size=2"), vocab_size=1000, num_ranks=4, device="cpu")
    extended = work_of(tiny("bert_small", "global_batch_size=16"), vocab_size=1000, num_ranks=4, device="cpu")
    assert counted.num_micro_batches == extended.num_micro_batches == 1
    assert flops_of(extended, PRODUCT, ATTENTION) == pytest.approx(2 * flops_of(counted, PRODUCT, ATTENTION), rel=0.05)
