"""docs/extend/callback.md, done as written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import commands
import plugins
import pytest
import torch
import yaml
from repository import ROOT

from xlpretrain.__main__ import main
from xlpretrain.checkpoint.reader import Checkpoint

PAGE = "docs/extend/callback.md"
FIRST, SECOND = "stream_loss", "stream_loss#2"


@pytest.fixture
def config(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's config, where its package is installed for this process and those that it starts."""
    plugins.install_page(PAGE, tmp_path)
    path = tmp_path / "watched.yaml"
    written = yaml.safe_load(path.read_text())
    written["data"] = {split: str(tiny_dataset / split) for split in ("train", "valid")}
    small = {"engine": {"type": "plain", "precision": "fp32"}, "eval": {"max_tokens": 500}}
    path.write_text(yaml.safe_dump({**written, **small, "wandb": {"mode": "disabled"}, "runs_dir": str(tmp_path)}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread
    with plugins.on_path(tmp_path, monkeypatch):
        yield path


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def running(run: Path, step: int, streams: range, name: str = FIRST) -> torch.Tensor:
    """The running losses of some streams in a checkpoint."""
    with Checkpoint(checkpoint(run, step)) as opened:
        opened.verify([], [streams])
        return opened.read_stream_state(name, streams)


def rows(run: Path) -> dict[int, tuple[float, ...]]:
    names = [f"stream_loss/{decay}/{figure}" for decay in (0.5, 0.9) for figure in ("mean", "spread")]
    return {row["step"]: tuple(row[name] for name in ("train/loss", *names)) for row in commands.read_metrics(run)}


def test_the_worked_example_goes_on_where_it_was_in_every_bit(config: Path, tmp_path: Path, capsys):
    assert main([str(config), "name=whole"]) == 0
    assert main([str(config), "name=parts", "max_steps=5", "schedule.total_steps=8"]) == 0
    assert main([str(config), "name=parts", "max_steps=8", "schedule.total_steps=8"]) == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert list(rows(whole)) == list(range(1, 9)) and rows(parts) == rows(whole)
    assert torch.equal(running(parts, 8, range(6)), running(whole, 8, range(6)))
    mean = rows(whole)[8][1]
    assert float(running(whole, 8, range(6)).mean()) == pytest.approx(mean, rel=1e-6)
    assert running(whole, 8, range(6)).unique().numel() == 6, "each stream has a loss of its own"
    of_ranks = [running(whole, 8, streams) for streams in (range(0, 1), range(1, 6), range(6, 6))]
    assert torch.equal(torch.cat(of_ranks), running(whole, 8, range(6)))
    capsys.readouterr()

    assert main([str(config), "name=parts", "max_steps=9", "callbacks=[{type: stream_loss, decay: 0.5}]"]) == 0
    told = capsys.readouterr().out
    assert told.count("dropped the saved state of callback 'stream_loss#2', which is not in the config") == 1
    ended = [str(config), "name=parts", "max_steps=60"]
    assert main([*ended, "callbacks=[{type: stream_loss, decay: 0.5, target: 9, patience: 4}]"]) == 0
    status = json.loads((parts / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 13), "4 steps after the first that was low"
    state = json.loads((checkpoint(parts, 13) / "manifest.json").read_text())["state"]["callbacks"]
    assert state[FIRST] == {"low_since": 9}


@pytest.mark.full
def test_states_of_streams_move_between_two_ranks_and_one(config: Path, tmp_path: Path):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    keep = ["checkpoint.every_steps=1", "checkpoint.keep=20", "schedule.total_steps=12"]
    keep += ["model.dropout=0"]  # each rank draws its own
    for steps, processes in ((4, 2), (8, 1), (12, 2)):  # a save is only sure at the end of an attempt
        commands.run("train", config, "name=whole", f"max_steps={steps}", *keep, "--nproc", 1)
        commands.run("train", config, "name=moved", f"max_steps={steps}", *keep, "--nproc", processes)
    expected = rows(whole)
    assert list(rows(moved)) == list(expected)
    for step, row in rows(moved).items():
        assert row == pytest.approx(expected[step], rel=5e-3)
    for step in (4, 8, 12):
        for name in (FIRST, SECOND):
            found = running(moved, step, range(6), name)
            assert torch.allclose(found, running(whole, step, range(6), name), rtol=1e-4)
            parts = [running(moved, step, streams, name) for streams in (range(0, 2), range(2, 5), range(5, 6))]
            assert torch.equal(torch.cat(parts), found), "any rank can read its own"
