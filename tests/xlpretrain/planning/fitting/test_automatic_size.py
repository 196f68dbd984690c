"""`micro_batch_size: auto` under a limit of address space: found, proven, kept, and explained where nothing fits.

Modules: trial.py, resident.py.
"""

from __future__ import annotations

import re
import resource
import subprocess
from functools import partial
from pathlib import Path

import commands
import pytest
import yaml
from commands import read_metrics, write_config

from xlpretrain.config import run_config
from xlpretrain.planning.memory import candidates, largest_micro_batch

WIDE = {"type": "transformer_xl", "num_layers": 6, "d_model": 128, "num_heads": 4, "d_ff": 512, "mem_len": 0}
MIB = 2**20


def limited(*arguments: object, data_bytes: int, expect: int) -> str:
    """Run a command all of whose processes have this RLIMIT_DATA; returns what it prints."""
    done = subprocess.run(
        [str(commands.BIN / "xlpretrain"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**commands.environment(), "OMP_NUM_THREADS": "1"},
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_DATA, (data_bytes, data_bytes)),
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


def wide_config(folder: Path, dataset: Path, **changes: object) -> Path:
    """Plain torch in fp32, whose activations take far more than its state."""
    return write_config(
        folder / "wide.yaml",
        dataset,
        model=WIDE,
        objective={"type": "causal_lm", "seq_len": 256},
        engine={"type": "plain", "precision": "fp32"},
        max_steps=2,
        schedule={"type": "cosine", "warmup_steps": 1},
        **changes,
    )


@pytest.mark.full
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_auto_is_the_largest_that_fits_and_a_resume_keeps_it(tmp_path: Path, tiny_dataset: Path, num_ranks: int):
    path = wide_config(tmp_path, tiny_dataset, micro_batch_size="auto", global_batch_size=64 * num_ranks)
    config = run_config.load(path)
    told = limited("train", path, "--nproc", num_ranks, data_bytes=1100 * MIB, expect=0)
    found = re.search(r"micro_batch_size: auto is (\d+): planned .*RLIMIT_DATA", told)
    assert found, told
    size = int(found[1])
    sizes = candidates(config, num_ranks=num_ranks)
    assert 1 < size < sizes[0], "the limit of this test is neither too tight nor too loose"
    written = yaml.safe_load((tmp_path / "runs/run/config.yaml").read_text())
    assert written["micro_batch_size"] == size
    assert read_metrics(tmp_path / "runs/run")[-1]["step"] == 2
    left = re.search(r"([\d.]+) ([MG])iB \(RLIMIT_DATA\)", told)
    assert left, told
    planned = largest_micro_batch(
        config,
        vocab_size=300,
        num_ranks=num_ranks,
        device="cpu",
        limit_bytes=int(float(left[1]) * (MIB if left[2] == "M" else 1024 * MIB)),
    )
    assert planned == size or f"a trial with {planned} failed" in told
    resumed, _ = commands.run("train", path, "--nproc", num_ranks, "max_steps=3")
    assert "micro_batch_size: auto" not in resumed
    assert yaml.safe_load((tmp_path / "runs/run/config.yaml").read_text())["micro_batch_size"] == size


@pytest.mark.full
def test_too_large_a_size_ends_with_the_plan_and_a_size_that_fits(tmp_path: Path, tiny_dataset: Path):
    path = wide_config(tmp_path, tiny_dataset, micro_batch_size=256, global_batch_size=256)
    told = limited("train", path, "trackers=[]", data_bytes=1100 * MIB, expect=2)
    assert "ran out of memory: " in told
    assert re.search(r"with micro_batch_size 256:\n( .*\n)*  activations +[\d.]+ [MG]iB", told), told
    assert re.search(r"a setting that fits by the plan: micro_batch_size=\d+ \(", told), told
    assert "Traceback" not in told
    assert not list((tmp_path / "runs/run/checkpoints").glob("step-*"))
