"""What was made by earlier versions is read as it was: datasets, run folders and checkpoints in tests/golden.

tests/support/make_golden.py made them, and says what is stored beside them.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from make_golden import NEXT, RESUMED_AS_PLAIN, ROOT, STEPS, digest
from repository import TESTS
from rich.console import Console
from tiny_model import whole_state

from data_pipelines.build.pipeline import build
from data_pipelines.config import DataConfig
from data_pipelines.sharding.verify import verify
from xlpretrain import schema
from xlpretrain.config import resume_rules, run_config
from xlpretrain.train.loop import train
from xlpretrain.train.setup import set_up_run

GOLDEN = TESTS / "golden"
VERSIONS = sorted(path.parent for path in GOLDEN.glob("*/expected.json"))
EXPECTED: Mapping[str, Mapping[str, Any]] = {
    version.name: json.loads((version / "expected.json").read_text()) for version in VERSIONS
}
RUNS = [(version, name) for version, runs in EXPECTED.items() for name in runs]
IDS = [f"{version} {name}" for version, name in RUNS]


@pytest.fixture(scope="module", params=VERSIONS, ids=[version.name for version in VERSIONS])
def version(request: pytest.FixtureRequest) -> Path:
    return request.param


def unpack(version: Path, to: Path) -> Path:
    with tarfile.open(version / "folders.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and older have none
        archive.extractall(to)
    return to


@pytest.fixture
def golden(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Mapping[str, Any]]:
    """A copy of a run, beside a copy of its data, and what is expected of it."""
    version, name = request.param
    folder = unpack(GOLDEN / version, tmp_path) / "runs" / name
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(ROOT), str(tmp_path)))
    return folder, EXPECTED[version][name]


def next_losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in commands.read_metrics(folder) if row["step"] > STEPS and "train/loss" in row]


def test_golden_folders_take_little_room(version: Path):
    assert sum(path.stat().st_size for path in version.rglob("*")) < 2 * 2**20


def test_datasets_are_whole(version: Path, tmp_path: Path):
    datasets = sorted((unpack(version, tmp_path) / "data").iterdir())
    assert len(datasets) >= 3
    for dataset in datasets:
        assert verify(dataset, workers=1) == []


def test_finished_datasets_are_up_to_date(version: Path, tmp_path: Path):
    for dataset in sorted((unpack(version, tmp_path) / "data").iterdir()):
        described = json.loads((dataset / "train" / "index.json").read_text())["built_from"]["settings"]
        tokenizer = described["tokenizer"]
        kind = "path" if tokenizer["path"] else "model_type"
        if kind == "path" or tokenizer[kind] == "bytes":  # the other keys may not be given then
            described["tokenizer"] = {kind: tokenizer[kind]}
        for settings in (described, schema.current_keys(DataConfig, described)):  # the former keys, and today's
            config = schema.validate(DataConfig, {**settings, "out": str(dataset)}, "data.yaml")
            assert build(config, console=Console(quiet=True)).reused


def test_configs_of_runs_are_read_in_silence(version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for path in sorted(unpack(version, tmp_path).glob("runs/*/config.yaml")):
        config = run_config.load(path)
        assert resume_rules.check_resume(config, config, folder=path.parent, allow_recipe_change=False) == {}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("golden", RUNS, ids=IDS, indirect=True)
def test_every_byte_is_loaded_and_the_next_losses_agree(golden: tuple[Path, Mapping[str, Any]], group: None):
    folder, expected = golden
    changes = [*RESUMED_AS_PLAIN, f"max_steps={STEPS + NEXT}", "log.every_steps=1"]
    run = set_up_run(run_config.load(folder / "config.yaml", changes), device=torch.device("cpu"))
    with closing(run.lease), run.recorder:
        state = {f"{kind}|{name}": digest(values) for (kind, name), values in whole_state(run.engine).items()}
        assert state == expected["state"]
        memory = torch.cat(run.memory, dim=1)
        assert (digest(memory.float()) if memory.numel() else None) == expected["memory"]
        known = vars(run.state) | {k: v for state in run.callbacks.state().values() for k, v in state.items()}
        kept = {key: known[key] for key in expected["train_state"]}
        assert json.loads(json.dumps(kept)) == expected["train_state"]
        train(run)
    assert next_losses(folder) == pytest.approx(expected["losses_as_plain"], rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("golden", RUNS, ids=IDS, indirect=True)
def test_engines_and_ranks_of_then_go_on(golden: tuple[Path, Mapping[str, Any]]):
    folder, expected = golden
    commands.run("resume", folder, f"max_steps={STEPS + NEXT}", "log.every_steps=1", "--nproc", expected["ranks"])
    config = run_config.load(folder / "config.yaml")
    # bf16's products differ between kinds of processors.
    tolerance = 1e-5 if config.engine.precision == "fp32" else 2e-2
    assert next_losses(folder) == pytest.approx(expected["losses_as_made"], rel=tolerance)
