"""docs/extend/feed-forward.md, done as written."""

import json
import os
from pathlib import Path

import commands
import documentation
import plugins
import pytest
import torch
from repository import ROOT

import xlpretrain
from xlpretrain.errors import LaunchError
from xlpretrain.hub.export import export
from xlpretrain.run_dir.layout import RunDir

PAGE = "docs/extend/feed-forward.md"


def test_the_worked_example_is_trained_and_computes_its_formula(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plugins.install_page(PAGE, tmp_path)
    monkeypatch.setitem(commands.EXTRA, "PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.chdir(tmp_path)
    (asked,) = [block.text.split() for block in documentation.blocks(PAGE) if block.language == "sh"]
    data = [f"data.train={tiny_dataset / 'train'}", f"data.valid={tiny_dataset / 'valid'}", "eval.max_tokens=2000"]
    out, _ = commands.run(*asked[1:], *data, "engine.type=plain", "wandb.mode=disabled")
    assert "held-out loss" in out
    folder = RunDir(tmp_path / "runs" / "sharp")
    assert json.loads(folder.provenance.read_text())["plugins"] == {"feed_forward.sharp_glu": "sharp-glu 0.1"}
    with plugins.on_path(tmp_path, monkeypatch):
        run = xlpretrain.load(folder.path)
        part = run.model.backbone.layers[1].feed_forward.float()
        x = torch.randn(2, 3, 64)
        gate, inner, outer = (part.get_parameter(f"{name}.weight") for name in ("gate", "inner", "outer"))
        torch.testing.assert_close(part(x), ((x @ gate.T).clamp(min=0) ** 2 * (x @ inner.T)) @ outer.T)
        assert part.flops_per_token() == 6 * 3 * 64 * 96
        with pytest.raises(LaunchError, match=r"model\.feed_forward\.type sharp_glu cannot be exported"):
            export(folder, tmp_path / "out")
