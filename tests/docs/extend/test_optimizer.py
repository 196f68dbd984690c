"""docs/extend/optimizer.md, done as written."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import commands
import documentation
import plugins
import pytest
import torch
import yaml
from tiny_model import training, whole_state
from workers.checkpoint_cases import STREAMS, restore, save
from workers.engine_cases import FP32

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.optim import OptimizerConfig

PAGE = "docs/extend/optimizer.md"


def _block(language: str) -> str:
    (found,) = [block.text for block in documentation.blocks(PAGE) if block.language == language]
    return found


@pytest.fixture
def optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OptimizerConfig]:
    """The optimizer of the page's config, of its package."""
    folder = plugins.install_page(PAGE, tmp_path / "package")
    with plugins.on_path(folder, monkeypatch):
        yield schema.validate(RunConfig, yaml.safe_load(_block("yaml")), "lion.yaml").optimizer


def test_it_steps_each_parameter_by_its_rule(optimizer: OptimizerConfig):
    shapes = {"backbone.embedding.weight": (3, 2), "mix.weight": (2, 2), "mix.bias": (2,)}
    parameters = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    built = optimizer.build(parameters)
    for group in built.param_groups:
        group["lr"] = 0.5 * group["lr_factor"]  # as an engine does
        for parameter in group["params"]:
            built.state[parameter] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}
            built.state[parameter] |= {key: torch.zeros_like(parameter) for key in group["state_keys"]}
            parameter.grad = torch.full_like(parameter, -3.0)
    built.step()
    # Adam's first step is the rate, as is Lion's; matrices outside of the page's group decay.
    expected = {"backbone.embedding.weight": 1 + 0.25, "mix.weight": 1 - 0.05 * 0.1 + 0.05, "mix.bias": 1 + 0.5}
    for name, parameter in parameters.items():
        assert torch.allclose(parameter, torch.full_like(parameter, expected[name])), name
    assert "exp_avg_sq" not in built.state[parameters["mix.weight"]]


def test_it_is_saved_and_goes_on_in_every_bit(optimizer: OptimizerConfig, tmp_path: Path, group: None):
    whole, cut = (
        training(FP32["plain fp32"], num_streams=STREAMS, num_micro_batches=2, optimizer=optimizer, seed=seed)
        for seed in (0, 1)
    )
    whole.steps(0, 2)
    folder = save(tmp_path / "checkpoints", whole, 2)
    assert restore(tmp_path / "checkpoints", cut) is not None
    assert cut.steps(2, 5) == whole.steps(2, 5) and cut.engine.num_updates == 5
    expected = whole_state(whole.engine)
    assert all(torch.equal(expected[key], values) for key, values in whole_state(cut.engine).items())
    saved = json.loads((folder / "manifest.json").read_text())["parameters"]
    assert saved["backbone.mix.weight"]["kinds"] == ["weight", "exp_avg"]
    assert saved["backbone.embedding.weight"]["kinds"] == ["weight", "exp_avg", "exp_avg_sq"]


@pytest.mark.full
def test_the_page_is_trained_and_resumed_under_zero_2_on_two_ranks(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(commands.EXTRA, "PYTHONPATH", str(plugins.install_page(PAGE, tmp_path)))
    runs = tmp_path / "runs"
    script = _block("sh").replace("lion.yaml", str(tmp_path / "lion.yaml")).replace("runs/lion", str(runs / "lion"))
    train, resume = map(shlex.split, script.splitlines())
    data = [f"data.train={tiny_dataset / 'train'}", f"runs_dir={runs}", "wandb.mode=disabled"]
    out, err = commands.run(*train[1:], *data)
    for group in (
        "backbone.embedding.*: 1 tensor,",
        "learning rate x 0.5, weight decay 0, state exp_avg, exp_avg_sq",
        "learning rate x 0.1, weight decay 0.1, state exp_avg",
    ):
        assert group in out + err
    commands.run(*resume[1:])
    commands.run("train", tmp_path / "lion.yaml", "--nproc", 2, "name=whole", "max_steps=20", *data)
    curve = commands.curve(runs / "lion")
    assert list(curve) == list(range(1, 21)) and curve == commands.curve(runs / "whole")
    assert curve[20][0] < curve[1][0]
    # On one process with the plain engine it goes on from the same checkpoint.
    commands.run("resume", runs / "lion", "--nproc", 1, "max_steps=22", "engine.type=plain")
    assert commands.curve(runs / "lion")[22][0] == pytest.approx(curve[20][0], abs=1)
