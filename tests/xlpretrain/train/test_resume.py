"""Every objective goes on in every bit: memories, masks, orders, dropout, both optimizers."""

from __future__ import annotations

from pathlib import Path

import commands
import pytest
from disturbed_runs import disturb

from xlpretrain.__main__ import main

SIZES = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_ff": 64, "dropout": 0.1, "attention_dropout": 0.1}
PERMUTATION = {"type": "permutation_lm", "seq_len": 32, "reuse_len": 16, "perm_size": 16, "num_predict": 7}
LAMB = {"type": "lamb", "lr": 0.01, "grad_clip": 0.5}
RUNS = {
    "permutation": {"model": {"type": "xlnet", **SIZES, "mem_len": 24}, "objective": PERMUTATION},
    "permutation, shared layers, LAMB": {
        "model": {"type": "xlnet", **SIZES, "mem_len": 24, "num_layer_groups": 1, "d_embed": 16},
        "objective": PERMUTATION,
        "optimizer": LAMB,
    },
    "permutation, shuffled": {
        "model": {"type": "xlnet", **SIZES, "mem_len": 0},
        "objective": {**PERMUTATION, "reuse_len": 0, "bi_data": False, "perm_size": 32, "span_unit": "word"},
    },
    "masked, sentence order, LAMB": {
        "model": {"type": "albert", **SIZES, "d_embed": 16},
        "objective": {"type": "masked_lm", "seq_len": 32},
        "optimizer": LAMB,
    },
    "masked, next sentence": {
        "model": {"type": "bert", **SIZES},
        "objective": {"type": "masked_lm", "seq_len": 32, "sentence_task": "nsp"},
    },
}


@pytest.fixture(params=RUNS.values(), ids=RUNS.keys())
def changes(request: pytest.FixtureRequest) -> dict:
    return request.param


def test_going_on_is_as_if_nothing_had_happened(
    tiny_dataset: Path, tmp_path: Path, changes: dict, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread: such small products only lose by more
    engine = {"type": "plain", "precision": "fp32"}
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        tiny_dataset,
        engine=engine,
        schedule={"type": "cosine", "warmup_steps": 2, "total_steps": 8},
        data={"train": str(tiny_dataset / "train")},
        wandb={"mode": "disabled"},
        max_steps=8,
        **changes,
    )
    for overrides in (["name=whole"], ["name=cut", "max_steps=3"], ["name=cut"]):
        assert main([str(config), *overrides]) == 0
    whole, cut = (commands.curve(tmp_path / "runs" / name) for name in ("whole", "cut"))
    assert cut == whole


def test_memories_may_move_between_device_and_host(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        tiny_dataset,
        engine={"type": "plain", "precision": "fp32"},
        schedule={"type": "cosine", "warmup_steps": 2, "total_steps": 6},
        data={"train": str(tiny_dataset / "train")},
        wandb={"mode": "disabled"},
        max_steps=6,
        **RUNS["permutation"],
    )
    host = "engine.memory_device=host"
    for overrides in (["name=one"], ["name=two", host, "max_steps=2"], ["name=two", host, "max_steps=4"], ["name=two"]):
        assert main([str(config), *overrides]) == 0
    one, two = (commands.curve(tmp_path / "runs" / name) for name in ("one", "two"))
    assert one == two


@pytest.mark.full
def test_stopped_and_killed_on_two_ranks_it_resumes_in_every_bit(tiny_dataset: Path, tmp_path: Path, changes: dict):
    engine = {"type": "deepspeed", "zero_stage": 2, "precision": "bf16"}
    config = commands.write_config(tmp_path / "tiny.yaml", tiny_dataset, engine=engine, **changes)
    commands.run("train", config, "name=undisturbed", "--nproc", 2)
    assert commands.curve(disturb(config, "disturbed")) == commands.curve(tmp_path / "runs" / "undisturbed")
