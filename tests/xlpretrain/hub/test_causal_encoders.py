"""Exported models that were trained with causal LM though they can look ahead: BERT, ALBERT and XLNet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from imported_runs import make_run

import xlpretrain
from xlpretrain.hub.export import export
from xlpretrain.hub.import_model import import_model
from xlpretrain.models.backbone import BackboneInput

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

MODELS: dict[str, dict[str, Any]] = {
    "bert": {"type": "bert", "max_positions": 64},
    "bert, pre-norm": {"type": "bert", "max_positions": 64, "pre_norm": True},
    "albert": {"type": "albert", "max_positions": 64, "d_embed": 8},
    "xlnet": {"type": "xlnet", "mem_len": 0},
    "xlnet, memory": {"type": "xlnet", "mem_len": 8},
}


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_logits_text_and_import_are_those_of_the_run(name: str, tmp_path: Path, tiny_dataset: Path):
    run = make_run(tmp_path / "runs", tiny_dataset, MODELS[name], objective={"type": "causal_lm", "seq_len": 32})
    export(run, tmp_path / "exported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True).eval()
    ours = xlpretrain.load(run.path, precision="fp32")
    tokens = torch.tensor([ours.tokenizer.encode("one two three four five six seven eight nine")[:12]])
    expected = _log_probs(ours, tokens)
    with torch.no_grad():
        logits = theirs(input_ids=tokens).logits
        cut = theirs(input_ids=tokens[:, :5]).logits
    assert (logits.log_softmax(-1)[0] - expected).abs().max() < 1e-4
    assert (logits[:, :5] - cut).abs().max() < 1e-4, "no token sees later ones"
    with torch.no_grad():
        found = theirs.generate(input_ids=tokens, max_new_tokens=4, do_sample=False)[0, tokens.shape[1] :]
    sequence = tokens
    for _ in range(4):
        sequence = torch.cat([sequence, _log_probs(ours, sequence)[-1].argmax().view(1, 1)], dim=1)
    assert found.tolist() == sequence[0, tokens.shape[1] :].tolist()
    again, _ = import_model(tmp_path / "exported", name="again", runs_dir=tmp_path / "runs")
    back = xlpretrain.load(again.path, precision="fp32")
    assert back.config.objective.type == "causal_lm"
    assert (_log_probs(back, tokens) - expected).abs().max() < 1e-5


def _log_probs(run: Any, tokens: torch.Tensor) -> torch.Tensor:
    backbone = run.model.backbone
    inputs = BackboneInput(tokens, torch.zeros(1, dtype=torch.int64), causal=True)
    with torch.no_grad():
        hidden, _ = backbone(inputs, backbone.empty_memory(1, 0))
        return run.model.head.output.log_probs(hidden.tokens[0])
