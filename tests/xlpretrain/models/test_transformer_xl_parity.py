"""Transformer-XL against a slow reference written from the equations, and, imported, that of transformers 4.x."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_transformer_xl import Reference
from repository import TESTS
from torch import Tensor

import xlpretrain
from xlpretrain.hub.import_model import import_model
from xlpretrain.models import TransformerXLConfig
from xlpretrain.models.backbone import BackboneInput, Hidden
from xlpretrain.models.embedding import VocabularySoftmax
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.objectives import CausalLM
from xlpretrain.objectives.causal_lm import CausalLMHead

SIZES = {"num_layers": 2, "num_heads": 2, "d_model": 12, "d_ff": 20, "dropout": 0.0}
VARIANTS = {
    "full": {"mem_len": 6},
    "zeros": {"mem_len": 6, "initial_memory": "zeros", "untie_r": True},
    "clamped": {"mem_len": 9, "clamp_len": 4, "d_head": 5},
    "same length": {"mem_len": 5, "same_length": True},
    "pre-norm, untied": {"mem_len": 6, "pre_norm": True, "tie_embeddings": False, "d_embed": 8},
    "no memory": {"mem_len": 0, "d_embed": 8, "tie_projections": (True,)},
    "adaptive": {"mem_len": 6, "adaptive_cutoffs": (8, 14)},
    "adaptive, narrowing": {"mem_len": 6, "adaptive_cutoffs": (8, 14), "div_val": 2},
    "adaptive, untied": {"mem_len": 3, "adaptive_cutoffs": (8, 14), "div_val": 2, "tie_embeddings": False},
    "adaptive, projected": {"mem_len": 3, "adaptive_cutoffs": (8, 14), "d_embed": 6},
}


def _build(config: TransformerXLConfig, vocab_size: int) -> PretrainingModel:
    """A model whose weights are large enough for every one of them to matter."""
    torch.manual_seed(1)
    backbone = config.build(vocab_size)
    model = PretrainingModel(backbone, CausalLM(seq_len=4).head(backbone))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model.eval()


def _largest_difference(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs() / theirs.abs()).max())


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS.keys())
def test_ten_segments_have_the_losses_of_the_reference(keys):
    config = TransformerXLConfig(**SIZES, **keys)
    model = _build(config, vocab_size=19)
    batch_size, num_segments, seq_len = 2, 10, 4
    tokens = torch.randint(19, (batch_size, num_segments * seq_len + 1))
    mems = model.backbone.empty_memory(batch_size, config.mem_len)
    references = [Reference(model.state_dict(), config) for _ in range(batch_size)]
    for segment in range(num_segments):
        start = segment * seq_len
        inputs, targets = tokens[:, start : start + seq_len], tokens[:, start + 1 : start + seq_len + 1]
        remembered = torch.full((batch_size,), min(start, config.mem_len))
        batch = Batch(
            BackboneInput(inputs, remembered),
            {"lm": targets.flatten(), "lm_positions": torch.arange(targets.numel())},
            {"lm": targets.numel()},
        )
        with torch.no_grad():
            loss, mems = model(batch, mems)
        expected = [
            reference.losses(inputs[sample].tolist(), targets[sample].tolist())
            for sample, reference in enumerate(references)
        ]
        assert (
            _largest_difference(loss.scores["lm"].nll.double(), torch.tensor(expected, dtype=torch.float64).flatten())
            < 1e-5
        )


PEERS = {
    "full softmax": {"cutoffs": [], "div_val": 1, "same_length": False, "clamp_len": -1, "untie_r": False},
    "full, projected": {
        "cutoffs": [],
        "div_val": 1,
        "same_length": True,
        "clamp_len": 9,
        "untie_r": True,
        "d_embed": 16,
    },
    "adaptive": {"cutoffs": [20, 35], "div_val": 1, "same_length": False, "clamp_len": -1, "untie_r": True},
    "adaptive, narrowing": {"cutoffs": [20, 35], "div_val": 2, "same_length": False, "clamp_len": 9, "untie_r": True},
    "adaptive, pre-norm": {"cutoffs": [20, 35], "div_val": 2, "same_length": True, "untie_r": False, "pre_lnorm": True},
    "adaptive, untied": {
        "cutoffs": [20, 35],
        "div_val": 2,
        "same_length": False,
        "untie_r": False,
        "tie_word_embeddings": False,
    },
}
PEER_SIZES = {
    "vocab_size": 50,
    "d_model": 24,
    "d_embed": 24,
    "n_head": 4,
    "d_head": 6,
    "d_inner": 40,
    "n_layer": 3,
    "mem_len": 11,
}


@pytest.fixture(scope="module")
def peer_python(tmp_path_factory) -> Path:
    """The Python of an environment of its own, with this torch and transformers 4.35; skips where it cannot be made."""
    folder = tmp_path_factory.mktemp("peer")
    python = folder / "venv" / "bin" / "python"
    # The transformers release is old; torch and the small libraries are those of the tests' own environment.
    here = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    wanted = ["transformers==4.35.2", "huggingface_hub==0.17.3", "tokenizers>=0.14,<0.19", "regex"]
    steps = [
        [sys.executable, "-m", "venv", folder / "venv"],
        [python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted],
        [
            python,
            "-c",
            f"import site, pathlib; pathlib.Path(site.getsitepackages()[0], 'z.pth').write_text({str(here)!r})",
        ],
        [
            python,
            "-c",
            "import transformers; assert transformers.__version__ == '4.35.2'; transformers.TransfoXLLMHeadModel",
        ],
    ]
    for step in steps:
        done = subprocess.run(list(map(str, step)), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"transformers 4.35 cannot be installed here: {(done.stderr or done.stdout).strip()[-300:]}")
    return python


@pytest.mark.full
@pytest.mark.parametrize("keys", PEERS.values(), ids=PEERS.keys())
def test_ten_segments_have_the_losses_of_transformers_4(keys, peer_python, tmp_path):
    tied = [False] + [True] * len(keys["cutoffs"])
    keys = {**PEER_SIZES, "clamp_len": -1, "tie_projs": tied, **keys}
    script = TESTS / "support" / "peer_transformer_xl.py"
    subprocess.run([str(peer_python), str(script), str(tmp_path), json.dumps(keys)], check=True)
    peer = torch.load(tmp_path / "peer.pt")
    folder, _ = import_model(tmp_path / "theirs", name="peer", runs_dir=tmp_path / "runs")
    run = xlpretrain.load(folder.path)
    model, config = run.model, run.config.model
    mems = model.backbone.empty_memory(peer["tokens"].shape[1], config.mem_len)
    assert isinstance(model.head, CausalLMHead)
    output = model.head.output
    differences = []
    for index, tokens in enumerate(peer["tokens"]):
        remembered = torch.full((len(tokens),), min(index * tokens.shape[1], config.mem_len))
        with torch.no_grad():
            hidden, mems = model.backbone(BackboneInput(tokens, remembered), mems)
            log_probs = output.log_probs(hidden.tokens.flatten(0, 1)).view(*tokens.shape, -1)
            losses = _losses(output, hidden, tokens)
        differences.append(_largest_difference(losses, peer["losses"][index]))
        assert (log_probs - peer["log_probs"][index].view_as(log_probs)).abs().max() < 1e-5 * log_probs.abs().max()
    print(f"largest relative difference of a loss: {max(differences):.2e}")
    assert max(differences) < 1e-5


def _losses(output: VocabularySoftmax, hidden: Hidden, tokens: Tensor) -> Tensor:
    """transformers shifts labels inside: the last token of a segment is not scored."""
    nll, _ = output(hidden.tokens[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return nll.view(len(tokens), -1)
