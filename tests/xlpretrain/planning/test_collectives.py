"""Volumes of the collectives of a step, against sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from xlpretrain.config import run_config
from xlpretrain.planning.collectives import Exchange, exchanges, sent_in_all_gather, sent_in_all_reduce


def of_engine(engine: str, *, num_ranks: int = 4, micro_batches: int = 3, on_gpus: bool = True) -> list[Exchange]:
    config = run_config.load(Path("configs/bert_small.yaml"), [f"engine={{{engine}}}"])
    return exchanges(
        config,
        num_parameters=100_000_000,
        num_tensors=50,
        num_micro_batches=micro_batches,
        num_ranks=num_ranks,
        on_gpus=on_gpus,
    )


def test_a_ring_of_four_sends_three_quarters_twice():
    assert sent_in_all_gather(100, 4) == 75
    assert sent_in_all_reduce(100, 4) == 150
    assert sent_in_all_reduce(100, 1) == 0


def test_one_rank_exchanges_nothing():
    assert of_engine("zero_stage: 3", num_ranks=1) == []


def test_plain_sums_gradients_once_after_all_micro_batches():
    assert of_engine("type: plain") == [Exchange("all-reduce of gradients", 600e6, 1, overlaps=False)]
    assert of_engine("type: plain, grad_dtype: bf16")[0].sent_bytes == 300e6


def test_stage_1_reduces_once_and_gathers_weights_once():
    # In bf16 with bf16 gradients it is DeepSpeed's stage 1: 2 * 3/4 of 200 MB, in 2 buckets of 5e7; 3/4 of 200 MB.
    assert of_engine("zero_stage: 1, grad_dtype: bf16") == [
        Exchange("all-reduce of gradients", 300e6, 2, overlaps=True),
        Exchange("all-gather of weights", 150e6, 1, overlaps=False),
    ]


def test_stage_2_reduces_the_gradients_of_each_micro_batch():
    reduce, gather = of_engine("zero_stage: 2")
    assert (reduce.sent_bytes, reduce.num_calls) == (3 * 600e6, 6)
    assert gather.sent_bytes == 150e6
    # Stage 1 with fp32 gradients runs as stage 2.
    assert of_engine("zero_stage: 1") == [reduce, gather]


def test_stage_3_gathers_weights_for_both_passes_of_each_micro_batch():
    scatter, gather = of_engine("zero_stage: 3")
    assert scatter.sent_bytes == 3 * 300e6
    assert gather.sent_bytes == 2 * 3 * 150e6
    assert scatter.overlaps


@pytest.mark.parametrize("on_gpus", [True, False])
def test_overlap_follows_the_options(on_gpus: bool):
    assert of_engine("zero_stage: 2", on_gpus=on_gpus)[0].overlaps == on_gpus
    off = "zero_stage: 2, deepspeed: {zero_optimization: {overlap_comm: false}}"
    assert not of_engine(off, on_gpus=on_gpus)[0].overlaps
