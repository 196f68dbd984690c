"""Compiled models: graphs, recompilations, and the same losses and gradients. Workers measure.

Modules: compiled.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torchrun import torchrun
from workers.model_cases import MODELS

from xlpretrain.engine.config import DeepSpeedConfig, PlainConfig


@pytest.mark.parametrize(
    "models", [["xlnet"], pytest.param(list(MODELS), marks=pytest.mark.full)], ids=["xlnet", "all"]
)
def test_layers_and_loss_are_two_graphs_whatever_the_batches(models: list[str], tmp_path: Path) -> None:
    """Short last batches, micro-batches without rows, evaluations, and a shorter memory in them."""
    torchrun("compiled_cases.py", tmp_path / "found.json", "regions", *models, nproc=None)
    by_model = json.loads((tmp_path / "found.json").read_text())
    assert by_model.pop("padded") == {"breaks": 0, "graphs": 4}, "packed, without padding, one row; and the loss"
    recompiled = by_model.pop("one row")
    assert recompiled["graphs"] == 3, "a single row is compiled for itself, once"
    for model, found in {**by_model, "one row": recompiled}.items():
        assert found["difference"] < 1e-5, model
        assert found["breaks"] == 0, model
        assert found["same names"], model
    assert {model: found["graphs"] for model, found in by_model.items()} == dict.fromkeys(models, 2)


def test_stage_3_leaves_the_loss_uncompiled() -> None:
    layer, output = PlainConfig().compiled_modules
    assert DeepSpeedConfig(zero_stage=2).compiled_modules == (layer, output)
    assert DeepSpeedConfig(zero_stage=3).compiled_modules == (layer,)


@pytest.mark.full
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_inductor_gives_the_losses_of_eager_in_every_engine(tmp_path: Path, num_ranks: int) -> None:
    """Micro-batches of three rows and of one; on two ranks one of each has no rows."""
    torchrun("compiled_cases.py", tmp_path / "found.json", "engines", nproc=num_ranks, timeout_s=2300)
    for model, by_engine in json.loads((tmp_path / "found.json").read_text()).items():
        for engine, found in by_engine.items():
            assert found["compiled"] == pytest.approx(found["eager"], rel=1e-5), f"{model}, {engine}"
            if not (model == "albert" and "zero 3" in engine):  # DeepSpeed's hooks are inside of its shared layer
                assert found["breaks"] == 0, f"{model}, {engine}"
                assert found["graphs"] <= 4, f"{model}, {engine}"
