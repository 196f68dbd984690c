"""The wheel alone, in an environment without any extra, from a folder that has nothing to do with the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bare_environment import make_environment, required
from corpus import make_documents
from labelled_files import _files

from xlpretrain.extras import PACKAGES

pytestmark = pytest.mark.full

TINY = [
    "name=r", "data.train=data/train", "data.valid=data/valid", "model.num_layers=2", "model.d_model=32",
    "model.num_heads=2", "model.d_ff=64", "model.mem_len=16", "objective.seq_len=16", "global_batch_size=4",
    "micro_batch_size=2", "max_steps=6", "schedule.warmup_steps=2",
    "checkpoint.every_steps=3", "eval.every_steps=3", "eval.max_tokens=500",
    "log.every_steps=1",
]  # fmt: skip


class Shell:
    """Runs programs of an environment in a folder, with an empty home and nothing else of this process."""

    def __init__(self, programs: Path, folder: Path):
        self._programs, self._folder = programs, folder
        self._env = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}

    def __call__(self, *arguments: object, expect: int = 0, program: str = "xlpretrain") -> str:
        found = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            cwd=self._folder, env=self._env, capture_output=True, text=True,
        )  # fmt: skip
        assert found.returncode == expect, found.stdout + found.stderr
        assert "Traceback" not in found.stdout + found.stderr
        return found.stdout + found.stderr


def test_the_wheel_alone_builds_trains_exports_and_generates_and_names_what_is_missing(tmp_path: Path):
    programs = make_environment(tmp_path / "bare", names=required())
    here = tmp_path / "elsewhere"
    here.mkdir()
    run = Shell(programs, here)

    check = "import sys; from xlpretrain.extras import is_missing; print(*filter(is_missing, sys.argv[1:]))"
    assert set(run("-c", check, *PACKAGES, program="python").split()) == set(PACKAGES)
    assert "Usage" in run("--help")

    listed = [line.split()[0] for line in run("config", "--list").splitlines()]
    assert {"quickstart", "quickstart_data", "xlnet_small", "slurm_site", "pretrain.sbatch"} <= set(listed)
    for name in listed:
        assert f"wrote {name}" in run("config", "--copy", name)

    (here / "text.txt").write_text("\n\n".join(make_documents(600)), encoding="utf-8")
    run(
        "data", "build", "quickstart_data.yaml", "out=data", "tokenizer.vocab_size=300", "block_tokens=256",
        'sources=[{type: text, path: text.txt, documents: blank_lines}]',
    )  # fmt: skip
    told = run("train", "quickstart.yaml", *TINY, "--nproc", 2)
    assert told.count('pip install "xlpretrain[wandb]"') == 1
    assert told.count('loss.png: cannot be written: a plot needs matplotlib: pip install "xlpretrain[plots]"') == 1
    assert "step 6" in run("report", "runs/r")
    run("report", "runs/r", "--html", "page.html", "--samples")
    assert "uPlot" in (here / "page.html").read_text()
    run("export", "runs/r", "--to", "exported")
    assert (here / "exported" / "model.safetensors").is_file()
    assert run("generate", "runs/r", "--prompt", "one").strip()

    labelled = _files(here)
    for extra, arguments in {
        "slurm": ["submit", "quickstart.yaml", "--cluster", "slurm_site.yaml"],
        "classify": ["finetune", "runs/r", "--train", labelled["train"], "--valid", labelled["valid"]],
        "plots": ["data", "stats", "data/train", "--plot", "plot.png"],
        "corpora": ["data", "build", "quickstart_data.yaml", "out=other", "sources=[{type: parquet, path: x.parquet}]"],
    }.items():
        lines = run(*arguments, expect=2).splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert lines[0].endswith(f'pip install "xlpretrain[{extra}]"')
