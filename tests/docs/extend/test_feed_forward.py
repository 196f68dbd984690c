"""docs/extend/feed-forward.md, done as written."""

import json
import os
from pathlib import Path
from typing import Any

import commands
import documentation
import plugins
import pytest
import torch
import yaml
from imported_runs import make_run
from repository import ROOT

import xlpretrain
from xlpretrain.errors import LaunchError
from xlpretrain.hub.export import export
from xlpretrain.run_dir.layout import RunDir

PAGE = "docs/extend/feed-forward.md"


def _block(language: str) -> str:
    (found,) = [block.text for block in documentation.blocks(PAGE) if block.language == language]
    return found


def test_the_example_computes_its_formula_and_is_not_exported(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model: dict[str, Any] = yaml.safe_load(_block("yaml"))["model"]
    with plugins.on_path(plugins.install_page(PAGE, tmp_path), monkeypatch):
        folder = make_run(tmp_path / "runs", tiny_dataset, model)
        part = xlpretrain.load(folder.path).model.backbone.layers[1].feed_forward
        x = torch.randn(2, 3, 64)
        gate, inner, outer = (part.get_parameter(f"{name}.weight") for name in ("gate", "inner", "outer"))
        torch.testing.assert_close(part(x), ((x @ gate.T).clamp(min=0) ** 2 * (x @ inner.T)) @ outer.T)
        assert part.flops_per_token() == 6 * 3 * 64 * 96
        with pytest.raises(LaunchError, match=r"model\.feed_forward\.type sharp_glu cannot be exported"):
            export(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_the_example_is_trained(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugins.install_page(PAGE, tmp_path)
    monkeypatch.setitem(commands.EXTRA, "PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.chdir(tmp_path)
    data = [f"data.train={tiny_dataset / 'train'}", f"data.valid={tiny_dataset / 'valid'}", "eval.max_tokens=2000"]
    out, _ = commands.run(*_block("sh").split()[1:], *data, "wandb.mode=disabled")
    assert "held-out loss" in out
    folder = RunDir(tmp_path / "runs" / "sharp")
    assert json.loads(folder.provenance.read_text())["plugins"] == {"feed_forward.sharp_glu": "sharp-glu 0.1"}
    assert json.loads(folder.status.read_text())["state"] == "finished"
