"""The operations of training by what makes them deterministic on CUDA, and the settings for that.

Modules: determinism.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from cuda_determinism import ONE_ORDER, OVER_RANKS, REFUSED, REPLACED, WITH_FIXED_WORKSPACES, sort_out
from tiny_model import WEIGHTS, tiny_batch, tiny_model, training
from torchrun import torchrun
from workers.deterministic_cases import Names
from workers.model_cases import MODELS, VOCAB, batch

from xlpretrain import distributed
from xlpretrain.__main__ import main, run
from xlpretrain.engine import determinism
from xlpretrain.engine.config import PlainConfig
from xlpretrain.errors import ConfigError
from xlpretrain.models import TransformerXLConfig
from xlpretrain.models.attention import Attention
from xlpretrain.models.parts.clusters import TargetClusters
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives import CausalLM
from xlpretrain.optim import AdamWConfig, LambConfig

ADAPTIVE = TransformerXLConfig(num_layers=1, num_heads=2, d_model=8, d_ff=12, adaptive_cutoffs=(9, 20), div_val=2)
SCHEDULE = {"type": "cosine", "warmup_steps": 1, "total_steps": 4}
CASES = {**MODELS, "adaptive": (ADAPTIVE.model_copy(update={"mem_len": 6}), CausalLM())}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a deterministic engine sets in the process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "x")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    filled = torch.utils.deterministic.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@pytest.mark.parametrize("name", CASES)
def test_every_operation_of_a_step_is_deterministic_or_replaced(name: str) -> None:
    """Of the branches that an accelerator takes: training with dropout, and evaluation."""
    config, objective = CASES[name]
    config = config.model_copy(update={"dropout": 0.1, "attention_dropout": 0.1})
    device = torch.device("meta")
    backbone = config.build(VOCAB)
    model = PretrainingModel(backbone, objective.head(backbone)).to(device)
    for module in model.modules():
        if isinstance(module, Attention):
            module.implementation = "sdpa"
    made = batch(objective, 1, range(4))
    if name == "adaptive":
        made = replace(made, clusters={"lm": TargetClusters.find(made.targets["lm"], model.head.output.edges)})
    given, mems = made.to(device), backbone.empty_memory(4, config.mem_len)
    with Names() as names:
        loss, _ = model.train()(given, mems)
        torch.stack(list(loss.sums.values())).sum().backward()
        with torch.no_grad():
            model.eval()(given, mems)
    found = sort_out(names.found)
    assert (found["unknown"], found["refused"]) == (set(), set())
    assert {"mm"} <= found["fixed workspaces"]


@pytest.mark.parametrize(
    "optimizer", [AdamWConfig(), AdamWConfig(bias_correction=False), LambConfig()], ids=["adamw", "uncorrected", "lamb"]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_operation_of_an_update_is_deterministic(device: str, optimizer: Any, alone: None) -> None:
    place = torch.device(device)
    engine = PlainConfig().build(tiny_model(), optimizer, num_micro_batches=2, weights=WEIGHTS, device=place)
    with Names() as names:
        engine.start_step({"lm": 70, "even": 3})
        for number in range(2):
            loss, _ = engine.forward(tiny_batch(number, range(4)).to(place), engine.model.backbone.empty_memory(4, 5))
            engine.backward(loss)
        engine.update(1e-3)
    found = sort_out(names.found)
    assert (found["unknown"], found["refused"]) == (set(), set())


@pytest.fixture
def alone() -> Iterator[None]:
    distributed.init()
    yield
    distributed.shutdown()


@pytest.mark.full
def test_every_operation_of_deepspeed_is_deterministic(tmp_path: Path) -> None:
    """On the CPU; on a GPU it also moves work between streams."""
    torchrun("deterministic_cases.py", tmp_path / "found.json", nproc=None)
    by_engine = json.loads((tmp_path / "found.json").read_text())
    assert len(by_engine) == 10
    for engine, names in by_engine.items():
        found = sort_out(set(names))
        assert (found["unknown"], found["refused"]) == (set(), set()), engine
        assert found["over ranks"], engine


def test_an_operation_is_in_one_group_and_an_unknown_one_in_none() -> None:
    groups = [ONE_ORDER, WITH_FIXED_WORKSPACES, frozenset(REPLACED), OVER_RANKS, REFUSED]
    assert len(frozenset().union(*groups)) == sum(map(len, groups))
    assert sort_out({"cumsum", "mul_", "unheard_of"}) == {
        "one order": {"mul"},
        "fixed workspaces": set(),
        "replaced": set(),
        "over ranks": set(),
        "refused": {"cumsum"},
        "unknown": {"unheard_of"},
    }


def test_a_deterministic_engine_repeats_its_losses_and_sets_torch(alone: None) -> None:
    runs = [training(PlainConfig(deterministic=on), num_streams=3, num_micro_batches=1) for on in (False, True, True)]
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    plain, first, second = (run.steps(0, 3) for run in runs)
    assert first == second == plain


def test_an_engine_that_need_not_be_deterministic_sets_nothing(alone: None) -> None:
    PlainConfig().prepare_process()
    training(PlainConfig(), num_streams=3, num_micro_batches=1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_the_precision_of_products_is_that_of_torch_on_cpus() -> None:
    PlainConfig(matmul_precision="high").set_matmul_precision(torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("given", [":4096:8", ":16:8"])
def test_workspaces_of_the_environment_are_kept(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    PlainConfig(deterministic=True).prepare_process()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == given


def test_workspaces_that_are_not_deterministic_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    PlainConfig().prepare_process()
    with pytest.raises(ConfigError, match=r"engine.deterministic is true, but CUBLAS_WORKSPACE_CONFIG is ':0:0'"):
        PlainConfig(deterministic=True).prepare_process()


def test_a_resume_says_when_the_setting_differs_and_a_rank_refuses_the_environment_before_it_starts(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread
    engine = {"type": "plain", "precision": "fp32", "deterministic": True}
    data = {"train": str(tiny_dataset / "train")}
    config = commands.write_config(tmp_path / "tiny.yaml", tiny_dataset, engine=engine, data=data, schedule=SCHEDULE)
    assert main([str(config), "max_steps=1"]) == 0
    assert "layout" not in capsys.readouterr().out
    assert main([str(config), "max_steps=2"]) == 0
    assert "layout" not in capsys.readouterr().out
    torch.use_deterministic_algorithms(False)
    PlainConfig(matmul_precision="high").set_matmul_precision(torch.device("cuda"))
    try:
        assert main([str(config), "max_steps=3", "engine.deterministic=false"]) == 0
    finally:
        PlainConfig().set_matmul_precision(torch.device("cuda"))
    printed = capsys.readouterr().out
    assert "match only within rounding: deterministic: True -> False" in printed
    assert "match only within rounding: matmul_precision: highest -> high" in printed
    assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.setenv("RANK", "no rank")  # which joining the others would refuse
    with pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG is ':0:0'"):
        run(config, ["max_steps=4"], allow_recipe_change=False, take_over=False)


def test_an_operation_that_torch_refuses_is_an_error_of_the_user() -> None:
    @determinism.explain_refusals
    def put() -> None:
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))

    put()
    determinism.use_deterministic_algorithms()
    with pytest.raises(ConfigError, match=r"put_ does not have a deterministic .* set engine.deterministic: false"):
        put()
