"""Exported models with fused attention, where xlpretrain cannot be imported: the same as with the plain formula.

Modules: visibility_xlpretrain.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from imported_runs import PERMUTATION, make_run

from xlpretrain.extras import is_missing
from xlpretrain.hub.export import export
from xlpretrain.hub.remote_code.fused_code import fused_code

KINDS = {
    "decoder": ("AutoModelForCausalLM", {"type": "transformer_xl", "same_length": True}, None),
    "two_streams": ("AutoModelForPreTraining", {"type": "xlnet", "pre_norm": True}, PERMUTATION),
}

ALONE = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.modules["xlpretrain"] = None
import torch, transformers
for folder, auto, into in json.loads(sys.argv[1]):
    found = []
    for attention in ("plain", "fused"):
        model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, attention=attention)
        assert model.config.attention == attention
        model.backbone.dropout.p = 0.0
        tokens = torch.arange(2 * 9).view(2, 9) % 50 + 5
        valid = torch.ones(2, 9, dtype=torch.int64)
        valid[0, :3] = 0
        given = {"input_ids": tokens, "attention_mask": valid, "labels": tokens}
        if model.config.type == "xlnet":
            given["token_type_ids"] = (tokens > 20).long()
            given["target_mapping"] = torch.nn.functional.one_hot(torch.tensor([[8, 1, 4]] * 2), 9).float()
            given["labels"] = tokens[:, [8, 1, 4]]
        first = model.eval()(**given)
        again = model(**given, mems=first.mems)
        (first.loss + again.loss).backward()
        found.append([first.logits, again.logits, *(p.grad for p in model.parameters() if p.grad is not None)])
        if model.config.type == "xlnet":
            hidden = torch.zeros(2, 9, 9).index_fill(2, torch.tensor([8, 1, 4]), 1.0)
            found[-1].append(model(**given, perm_mask=hidden).logits)
        assert len(model(**given, output_attentions=True).attentions) == model.config.num_layers
    torch.save([[tensor.detach() for tensor in tensors] for tensors in found], into)
"""


@pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed")
@pytest.mark.full
def test_fused_attention_is_the_same_without_xlpretrain(tmp_path: Path, tiny_dataset: Path):
    asked = []
    for name, (auto, model, objective) in KINDS.items():
        run = make_run(tmp_path / "runs", tiny_dataset, model, objective=objective, name=name)
        export(run, tmp_path / name)
        asked.append([str(tmp_path / name), auto, str(tmp_path / f"{name}.pt")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", ALONE, json.dumps(asked)]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for *_, answer in asked:
        plain, fused = torch.load(answer)
        for right, ours in zip(plain, fused, strict=True):
            assert (ours - right).abs().max() <= 1e-5 * right.abs().max().clamp(min=1e-2)


def test_where_it_cannot_run_the_model_loads_and_says_so(
    tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        export(make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"}), tmp_path / "out")
        load = transformers.AutoModelForCausalLM.from_pretrained
        model = load(tmp_path / "out", trust_remote_code=True, attention="fused")
        with pytest.raises(ValueError, match="attention must be plain or fused, got 'flash'"):
            load(tmp_path / "out", trust_remote_code=True, attention="flash")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tokens = torch.arange(5, 10)[None]
    if not is_missing("triton"):
        with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU .* and the model is on cpu; load the model with"):
            model(input_ids=tokens)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match=r"Triton is not installed \(pip install triton\)"):
        model(input_ids=tokens)
    model.config.attention = "plain"
    assert model(input_ids=tokens).logits.isfinite().all()


def test_the_file_needs_nothing_of_ours():
    text = fused_code()
    compile(text, "fused_xlpretrain.py", "exec")
    assert "import xlpretrain" not in text
    assert "from xlpretrain" not in text
    assert "torch.ops.xlpretrain" not in text
