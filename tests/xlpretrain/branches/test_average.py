"""Means of checkpoints: the formula, what uses them, and what is refused. Modules: weights_only.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builds import tree
from click.testing import CliRunner, Result
from imported_runs import make_run
from torch import Tensor
from typer.main import get_command

import xlpretrain
from launcher.cli import main as cli
from xlpretrain.__main__ import main
from xlpretrain.branches.average import average
from xlpretrain.branches.fork import fork
from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import Checkpoint
from xlpretrain.errors import XLPretrainError
from xlpretrain.hub.export import export
from xlpretrain.run_dir.layout import RunDir


def weights(run: RunDir, step: int) -> dict[str, Tensor]:
    with Checkpoint(run.checkpoints / checkpoint_name(step)) as checkpoint:
        sizes = {name: torch.Size(of.shape).numel() for name, of in checkpoint.manifest.parameters.items()}
        return {name: checkpoint.read("weight", name, 0, size) for name, size in sizes.items()}


def refusal(trunk: RunDir, **options: object) -> str:
    before = sorted(trunk.path.parent.rglob("*"))
    with pytest.raises(XLPretrainError) as error:
        average(trunk, **{"name": "mean", **options})
    assert sorted(trunk.path.parent.rglob("*")) == before
    return str(error.value)


@pytest.mark.parametrize(("choice", "steps"), [({"last": 3}, [4, 6, 8]), ({"steps": [8, 2]}, [2, 8])])
def test_it_equals_the_mean_in_float64(trunk: RunDir, choice: dict, steps: list[int]):
    before = tree(trunk.path)
    mean, found = average(trunk, **choice, name="mean")
    assert found == steps
    assert tree(trunk.path) == before
    parts = [weights(trunk, step) for step in steps]
    for name, got in weights(mean, steps[-1]).items():
        expected = torch.stack([part[name].double() for part in parts]).mean(dim=0)
        assert not torch.equal(got, parts[-1][name])
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    averaged = mean.read_provenance()["averaged_from"]
    assert averaged["run"] == str(trunk.path)
    assert [*averaged["checkpoints"]] == [str(step) for step in steps]


def test_it_is_a_run_that_is_evaluated_exported_and_trained_from(trunk: RunDir, tmp_path: Path, capfd):
    mean, _ = average(trunk, last=2, name="mean")
    loaded = xlpretrain.load(mean.path)
    assert loaded.step == 8
    assert 0 < loaded.evaluate(config=loaded.config.eval).loss < 10
    assert loaded.generate("the", num_tokens=3)
    export(mean, tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    begun = ["name=begun", "checkpoint.keep_best=false", f"init_from={mean.path}", "max_steps=1"]
    assert main([str(trunk.config), *begun, "schedule.total_steps=20"]) == 0
    assert main([str(mean.config), "max_steps=10"]) == 2
    assert "has only weights" in capfd.readouterr().err
    with pytest.raises(XLPretrainError, match="has only weights"):
        fork(mean, name="child", overrides=["max_steps=20"])


def test_bad_choices_are_refused(trunk: RunDir, tiny_dataset: Path, tmp_path: Path):
    assert "has only 4 checkpoints (2, 4, 6, 8), not 5" in refusal(trunk, last=5)
    assert "no checkpoint of step 3; there are those of 2, 4, 6, 8" in refusal(trunk, steps=[2, 3])
    assert "at least two" in refusal(trunk, steps=[4, 4])
    assert "already exists" in refusal(trunk, last=2, name="trunk")
    for name in ("-mean", "a/b"):
        assert "must start with a letter" in refusal(trunk, last=2, name=name)
    other = make_run(tmp_path / "others", tiny_dataset, {"type": "transformer_xl"})
    (other.checkpoints / checkpoint_name(0)).rename(trunk.checkpoints / checkpoint_name(0))
    assert "is of another model" in refusal(trunk, steps=[0, 2])
    file = trunk.checkpoints / checkpoint_name(6) / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file.parent}: is damaged" in refusal(trunk, last=3)


def xlpretrain_command(*arguments: object) -> Result:
    return CliRunner().invoke(get_command(cli.app), [*map(str, arguments)])


def test_the_commands(trunk: RunDir):
    runs = trunk.path.parent
    forked = xlpretrain_command("fork", trunk.path, "--step", 4, "--name", "child", "max_steps=6")
    assert forked.exit_code == 0, forked.exception
    assert f"to train it: xlpretrain resume {runs / 'child'}" in forked.output
    shown = xlpretrain_command("status", runs / "child").output
    assert f"{trunk.path}, step 4; schedule.total_steps: 8 -> 6; max_steps: 8 -> 6" in shown
    assert "not started" in shown
    assert "4/6" in shown
    assert xlpretrain_command("average", trunk.path, "--last", 2, "--name", "mean").exit_code == 0
    assert "steps 4, 8" in xlpretrain_command("average", trunk.path, "--steps", "4, 8", "--name", "two").output
    assert "either --last" in str(xlpretrain_command("average", trunk.path, "--name", "three").exception)
    assert "--steps" in str(xlpretrain_command("average", trunk.path, "--steps", "4,x", "--name", "three").exception)
    assert "not a run folder" in str(xlpretrain_command("fork", runs / "no", "--name", "three").exception)
    assert main([str(runs / "child" / "config.yaml")]) == 0
    picture = runs / "curves.png"
    report = xlpretrain_command("report", trunk.path, runs / "child", "--plot", picture)
    assert report.exit_code == 0, report.exception
    assert "forked from" in report.output
    assert "trunk, step 4" in report.output
    assert picture.stat().st_size > 10_000
    page = runs / "page.html"
    assert xlpretrain_command("report", trunk.path, runs / "child", "--html", page).exit_code == 0
    assert "child</b> was forked from trunk, step 4" in page.read_text()
