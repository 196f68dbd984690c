"""docs/extend/objective.md, done as written."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import commands
import documentation
import plugins
import pytest
import torch
from corpus import make_documents
from repository import ROOT

from xlpretrain.config import run_config
from xlpretrain.errors import ConfigError
from xlpretrain.run_dir.layout import RunDir

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

PAGE = "docs/extend/objective.md"


DISTANCE = 3  # as in the page's config


def _block(language: str) -> str:
    (found,) = [block.text for block in documentation.blocks(PAGE) if block.language == language]
    return found


def _texts() -> list[str]:
    """Lines of different lengths, one longer than a sample."""
    lines = [line for document in make_documents(4, seed=5) for line in document.splitlines() if line]
    return [lines[0][:20], *lines[1:3], " ".join(lines[3:9])[:400]]


@torch.no_grad()
def _likelihoods_of_export(folder: Path) -> list[float]:
    """The likelihoods by hand, of the export as `transformers` loads it: each token three positions ahead."""
    model = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="AutoModelForMaskedLM"):
        AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    found = []
    for text in _texts():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        inputs = torch.tensor([[tokenizer.eos_token_id] * DISTANCE + ids])
        log_probs = model(inputs[:, : len(ids)]).logits[0].log_softmax(-1)
        found.append(float(log_probs.gather(1, torch.tensor(ids)[:, None]).sum()))
    return found


def test_a_resume_without_the_package_names_it(tmp_path: Path):
    folder = RunDir(tmp_path / "runs" / "lookahead")
    config = _block("yaml")
    folder.create(config=config, provenance={"plugins": {"objective.lookahead_lm": "lookahead 0.1"}})
    (tmp_path / "mine.yaml").write_text(config + f"runs_dir: {folder.path.parent}\n", encoding="utf-8")
    for path in (folder.config, tmp_path / "mine.yaml"):
        with pytest.raises(ConfigError) as caught:
            run_config.load(path)
        first, problem, hint = str(caught.value).splitlines()
        assert "1 problem" in first
        assert "must be one of causal_lm, " in problem and 'got "lookahead_lm"' in problem
        assert "was begun with objective.lookahead_lm of lookahead 0.1, not installed here" in hint


@pytest.mark.full
def test_the_worked_example_is_trained_exported_and_scored(tiny_dataset: Path, tmp_path: Path):
    plugins.install_page(PAGE, tmp_path)
    environment = commands.environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    data = [
        f"data.train={tiny_dataset / 'train'}",
        f"data.valid={tiny_dataset / 'valid'}",
        "eval.max_tokens=2000",
        "engine.precision=fp32",
    ]
    out = run("-m", "xlpretrain", "lookahead.yaml", *data, "wandb.mode=disabled")
    assert re.search(r"held-out loss [\d.]+, .*ahead accuracy [\d.]+", out)
    provenance = json.loads((tmp_path / "runs" / "lookahead" / "provenance.json").read_text())
    assert provenance["plugins"] == {"objective.lookahead_lm": "lookahead 0.1"}
    (tmp_path / "texts.txt").write_text("\n".join(_texts()) + "\n", encoding="utf-8")
    used = _block("sh").splitlines()
    assert [line.split()[1] for line in used] == ["export", "score", "import", "score"]
    others = [("xlpretrain report runs/lookahead", 0), ("xlpretrain generate runs/lookahead --prompt A", 2)]
    told = commands.run_in_one_process([*((line, 0) for line in used), *others], cwd=tmp_path, environment=environment)
    assert "AutoModelForPreTraining.from_pretrained('out', trust_remote_code=True)" in told
    assert "held-out text" in told and "Generated text" not in told
    assert "objective lookahead_lm does not predict the next token (its class LookaheadLM does not declare" in told
    scores, back = (
        [json.loads(line)["log_likelihood"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("scores.jsonl", "scores_of_back.jsonl")
    )
    assert scores == back == pytest.approx(_likelihoods_of_export(tmp_path / "out"), rel=1e-4) and max(scores) < -10
    tests = ROOT / "tests" / "xlpretrain" / "objectives" / "test_objectives.py"
    out = run(
        "-m",
        "pytest",
        "--rootdir",
        ROOT,
        "-c",
        ROOT / "pyproject.toml",
        tests,
        "-k",
        "lookahead",
        "-p",
        "no:cacheprovider",
    )
    passed = re.search(r"\b(\d+) passed", out)
    assert passed and int(passed[1]) >= 5 and "failed" not in out
