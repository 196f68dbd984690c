"""Plans of runs: totals by hand, assumptions that are said, and refusals. Modules: plan_report.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xlpretrain.config import run_config
from xlpretrain.errors import ConfigError
from xlpretrain.planning.devices import DEVICES
from xlpretrain.planning.plan_report import as_json, plan_lines
from xlpretrain.planning.run_plan import Cluster, checkpoint_bytes, plan_run

CONFIGS = sorted(path for path in Path("configs").glob("*.yaml") if path.stem != "quickstart_data")
TINY = ["model.num_layers=1", "model.d_model=32", "model.num_heads=2", "model.d_ff=64", "data.train=nowhere/train"]


def on(name: str, num_devices: int = 2, per_node: int = 8) -> Cluster:
    return Cluster(DEVICES[name], num_devices, per_node)


def tiny(*overrides: str) -> run_config.RunConfig:
    return run_config.load(Path("configs/bert_small.yaml"), [*TINY, *overrides])


def test_devices_must_fill_their_nodes():
    with pytest.raises(ConfigError, match=r"--devices: must be a multiple of --per-node, 8, .* got 12"):
        on("h100", 12)
    assert on("h100", 16).num_nodes == 2
    assert on("h100", 3).num_nodes == 1


def test_a_plan_says_what_it_assumes():
    plan = plan_run(tiny("engine.compile=true"), on("t4"))
    assert plan.vocab_size == 30_522
    notes = "\n".join(plan.notes)
    assert "dataset not found: nowhere/train" in notes
    assert "vocabulary: 30,522 assumed, that of the published bert; --vocab-size N gives another" in notes
    assert "T4 has no units for bf16: products are planned at its rate in fp32" in notes
    assert "engine.compile: planned as eager code" in notes
    assert plan_run(tiny(), on("a100"), vocab_size=500).vocab_size == 500


def test_totals_are_products_of_steps():
    config = tiny("max_steps=1000", "checkpoint.keep=2")
    plan = plan_run(config, on("a100", 4), vocab_size=500)
    totals = plan.totals
    assert (totals.steps, totals.tokens) == (1000, 1000 * 64 * 128)
    assert totals.hours(plan.step) == pytest.approx(1000 * plan.step.seconds / 3600)
    assert plan.tokens_per_second == pytest.approx(64 * 128 / plan.step.seconds)
    assert totals.checkpoint_bytes == 12 * plan.num_parameters  # fp32 weights and two moments
    assert totals.disk_bytes == 3 * totals.checkpoint_bytes
    assert as_json(plan, price=2.0)["price"] == pytest.approx(2.0 * 4 * totals.hours(plan.step))
    assert (plan.num_micro_batches, plan.whole_share, plan.largest_micro_batch) == (1, 16, 16)


def test_of_a_run_with_stages_the_longest_samples_are_planned_and_all_tokens_counted():
    stages = "stages=[{until: {fraction: 0.9}, objective: {seq_len: 64}}, {}]"
    plan = plan_run(tiny("max_steps=1000", stages), on("a100", 4), vocab_size=500)
    plain = plan_run(tiny("max_steps=1000"), on("a100", 4), vocab_size=500)
    assert plan.step == plain.step and plan.memory == plain.memory
    assert plan.totals.tokens == 900 * 64 * 64 + 100 * 64 * 128
    assert plan.totals.hours(plan.step) == pytest.approx(0.55 * plain.totals.hours(plain.step))
    assert "stages: planned is the one with the longest samples, 128 tokens, and 64 samples a step" in "\n".join(
        plan.notes
    )


def test_a_length_in_tokens_becomes_steps_and_one_in_epochs_stays_unknown_without_data():
    by_tokens = plan_run(tiny("max_steps=null", "max_tokens=16385"), on("a100"), vocab_size=500)
    assert by_tokens.totals.steps == 3  # of 8,192 tokens
    by_epochs = plan_run(tiny("max_steps=null", "max_epochs=2"), on("a100"), vocab_size=500)
    assert (by_epochs.totals.steps, by_epochs.totals.epochs) == (None, 2)
    assert as_json(by_epochs, price=1.0)["price"] is None


def test_more_ranks_than_samples_are_refused():
    with pytest.raises(ConfigError, match="--devices: must be at most global_batch_size, 64"):
        plan_run(tiny(), on("a100", 128), vocab_size=500)


def test_auto_becomes_the_largest_that_fits():
    config = tiny("micro_batch_size=auto", "engine.type=plain")
    plan = plan_run(config, on("a100"), vocab_size=500)
    assert plan.config.micro_batch_size == plan.largest_micro_batch == 32
    small = Cluster(replace(DEVICES["a100"], memory_bytes=plan.memory.peak / 2), 2, 8)
    fewer = plan_run(config, small, vocab_size=500)
    assert fewer.memory.peak <= fewer.memory_limit
    assert 0 < fewer.largest_micro_batch < 32


def test_a_checkpoint_has_the_memories_of_all_streams():
    config = run_config.load(Path("configs/quickstart.yaml"))
    with torch.device("meta"):
        model = config.build_model(500)
    state = 12 * sum(parameter.numel() for parameter in model.parameters())
    layers, streams, mem_len, width, bf16 = 6, 16, 128, 256, 2
    assert checkpoint_bytes(config, model) == state + layers * streams * mem_len * width * bf16


def test_the_lines_for_a_submission_name_memory_time_and_assumptions():
    first, memory, time, *assumed = plan_lines(plan_run(tiny(), on("h200", 16), vocab_size=500))
    assert first.startswith("plan: 31,510 parameters")
    assert "16 x H200 SXM in 2 nodes, ZeRO 1, bf16" in first
    assert "of 141 GB a rank; micro_batch_size=32 fits" in memory
    assert "a step, bound by" in time
    assert assumed == ["  assumed dataset not found: nowhere/train"]


@pytest.mark.full
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_can_be_planned(path: Path):
    plan = plan_run(run_config.load(path), on("h100", 8))
    assert plan.memory.peak < 80e9
    assert 0 < plan.step.seconds < 600
    assert sum(plan.step.by_bound.values()) == pytest.approx(plan.step.seconds)
