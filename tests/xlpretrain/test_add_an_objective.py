"""docs/add-an-objective.md, done as written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
from repository import ROOT


def _block(page: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


def test_the_worked_example_trains_and_passes_what_every_objective_must(tiny_dataset: Path, tmp_path: Path):
    page = (ROOT / "docs" / "add-an-objective.md").read_text(encoding="utf-8")
    shutil.copytree(ROOT / "xlpretrain", tmp_path / "xlpretrain", ignore=shutil.ignore_patterns("__pycache__"))
    objectives = tmp_path / "xlpretrain" / "objectives"
    (objectives / "lookahead_lm.py").write_text(_block(page, "python"), encoding="utf-8")
    registry = (objectives / "__init__.py").read_text(encoding="utf-8")
    registry = "from xlpretrain.objectives.lookahead_lm import LookaheadLM\n" + registry
    before, after = registry.split("OBJECTIVES: dict[str, type[Objective]] = {")
    registry = f"{before}OBJECTIVES: dict[str, type[Objective]] = {{\n{_block(page, 'registry')}{after}"
    (objectives / "__init__.py").write_text(registry, encoding="utf-8")
    (tmp_path / "lookahead.yaml").write_text(_block(page, "yaml"), encoding="utf-8")
    environment = commands.environment() | {"PYTHONPATH": str(tmp_path)}

    def run(*arguments: object, expect: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    data = [f"data.train={tiny_dataset / 'train'}", f"data.valid={tiny_dataset / 'valid'}", "eval.max_tokens=2000"]
    out = run("-m", "xlpretrain", "lookahead.yaml", *data, "wandb.mode=disabled")
    assert re.search(r"held-out loss [\d.]+, .*ahead accuracy [\d.]+", out)
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    command = ("-c", "from launcher.cli.main import main; main()")
    told = run(*command, "export", "runs/lookahead", "--to", "out", expect=2)
    assert "objective lookahead_lm is not one that can be exported" in told
    assert not (tmp_path / "out").exists()
    (tmp_path / "texts.txt").write_text("A text.\n", encoding="utf-8")
    told = run(*command, "score", "runs/lookahead", "--input", "texts.txt", expect=2)
    assert "objective lookahead_lm has no likelihood of a text here" in told
    told = run(*command, "generate", "runs/lookahead", "--prompt", "A", expect=2)
    assert "only causal_lm predicts the next token" in told
    told = run(*command, "report", "runs/lookahead")
    assert "ahead" in told and "A sample" not in told
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
    assert re.search(r"\b4 passed", out)
