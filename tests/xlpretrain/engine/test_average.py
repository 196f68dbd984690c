"""Moving averages of the weights: their formula at every stage, and elastic resumes.

Modules: state_shards.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import training
from torchrun import torchrun
from workers.average_cases import AT, END, THEN, begin, error, follow
from workers.checkpoint_cases import STREAMS, restore, save
from workers.engine_cases import ALL

from xlpretrain.optim import AdamWConfig


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("averages")
    torchrun("average_cases.py", folder, nproc=2)
    return folder, json.loads((folder / "average.json").read_text())


@pytest.mark.full
@pytest.mark.parametrize("name", THEN)
def test_on_two_ranks_it_equals_its_formula_and_is_evaluated(measured: tuple[Path, dict[str, Any]], name: str):
    found = measured[1][name]
    assert found["counted"] == 3  # of 7 steps one was skipped, and every second update counts
    assert found["error"] < 1e-6
    assert found["resumed"] < 1e-6  # under another engine
    assert found["swapped"] and found["same"]
    assert found["averaged"] != found["loss"]
    assert found["averaged"] == pytest.approx(
        measured[1]["plain fp32"]["averaged"], rel=1e-2 if "bf16" in name else 1e-5
    )


@pytest.mark.full
@pytest.mark.parametrize("name", THEN)
def test_it_goes_on_with_another_number_of_ranks(measured: tuple[Path, dict[str, Any]], group: None, name: str):
    run = begin(ALL["plain fp32"], seed=1)
    assert restore(measured[0] / name, run) is not None
    history = torch.load(measured[0] / name / "history.pt")
    assert error(run, history) < 1e-6
    assert error(run, history + follow(run, AT, END)) < 1e-6


def test_alone_it_equals_its_formula(group: None, tmp_path: Path):
    run = begin(ALL["plain fp32"])
    history = follow(run, 0, AT)
    assert len(history) == 3
    assert error(run, history) < 1e-6
    save(tmp_path, run, AT)
    again = begin(ALL["plain fp32"], seed=1)
    assert restore(tmp_path, again) is not None
    assert error(again, history + follow(again, AT, END)) < 1e-6


def test_a_device_that_decides_on_updates_counts_the_same(group: None):
    run = begin(ALL["plain fp32"])
    run.engine._decides_on_device = True
    assert error(run, follow(run, 0, AT)) < 1e-6


def test_training_is_the_same_in_every_bit(group: None):
    without = training(
        ALL["plain fp32"], num_streams=STREAMS, num_micro_batches=2, optimizer=AdamWConfig(grad_clip=0.5)
    )
    assert begin(ALL["plain fp32"]).steps(0, 4) == without.steps(0, 4)


def test_begun_in_the_middle_it_starts_from_the_weights(group: None, tmp_path: Path):
    without = training(
        ALL["plain fp32"], num_streams=STREAMS, num_micro_batches=2, optimizer=AdamWConfig(grad_clip=0.5)
    )
    without.steps(0, 3)
    save(tmp_path, without, 3)
    run = begin(ALL["plain fp32"], seed=1)
    assert restore(tmp_path, run) is not None
    shards = {(shard.kind, shard.name): shard.tensor for shard in run.engine.state_ranges()}
    assert all(torch.equal(shards["average", name], shards["weight", name]) for name in run.engine.shapes)
