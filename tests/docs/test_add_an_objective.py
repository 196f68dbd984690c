"""docs/add-an-objective.md, done as written."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import documentation
from repository import ROOT

PAGE = "docs/add-an-objective.md"


END = "-- end --"
FOUR_COMMANDS = f"""
import sys
from launcher.cli.main import main

sys.stderr = sys.stdout
for command, code in {{
    "export runs/lookahead --to out": 2,
    "score runs/lookahead --input texts.txt": 2,
    "generate runs/lookahead --prompt A": 2,
    "report runs/lookahead": 0,
}}.items():
    sys.argv = ["xlpretrain", *command.split()]
    try:
        main()
    except SystemExit as left:
        assert (left.code or 0) == code, (command, left.code)
    if code:
        print({END!r})
"""
"""One process, since each would import torch; the exit codes are checked in it."""


def _block(language: str) -> str:
    (found,) = [block.text for block in documentation.blocks(PAGE) if block.language == language]
    return found


def _patched(registry: str, patch: str) -> str:
    """The registry with the added lines of a patch: imports at its top, others below the line before them."""
    for before, line in itertools.pairwise(patch.splitlines()):
        if line.startswith("+"):
            assert registry.count(f"{before[1:]}\n") == 1
            registry = registry.replace(f"{before[1:]}\n", f"{before[1:]}\n{line[1:]}\n")
    return registry


def test_the_worked_example_trains_and_passes_what_every_objective_must(tiny_dataset: Path, tmp_path: Path):
    shutil.copytree(ROOT / "xlpretrain", tmp_path / "xlpretrain", ignore=shutil.ignore_patterns("__pycache__"))
    objectives = tmp_path / "xlpretrain" / "objectives"
    (objectives / "lookahead_lm.py").write_text(_block("python"), encoding="utf-8")
    registry = objectives / "__init__.py"
    registry.write_text(_patched(registry.read_text(encoding="utf-8"), _block("diff")), encoding="utf-8")
    (tmp_path / "lookahead.yaml").write_text(_block("yaml"), encoding="utf-8")
    environment = commands.environment() | {"PYTHONPATH": str(tmp_path)}

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    data = [f"data.train={tiny_dataset / 'train'}", f"data.valid={tiny_dataset / 'valid'}", "eval.max_tokens=2000"]
    out = run("-m", "xlpretrain", "lookahead.yaml", *data, "wandb.mode=disabled")
    assert re.search(r"held-out loss [\d.]+, .*ahead accuracy [\d.]+", out)
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    (tmp_path / "texts.txt").write_text("A text.\n", encoding="utf-8")
    exported, scored, generated, reported = run("-c", FOUR_COMMANDS).split(END)
    assert "objective lookahead_lm is not one that can be exported" in exported
    assert not (tmp_path / "out").exists()
    assert "objective lookahead_lm has no likelihood of a text here" in scored
    assert "only causal_lm predicts the next token" in generated
    assert "ahead" in reported and "A sample" not in reported
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
