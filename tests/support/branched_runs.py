"""A small run with several checkpoints, to be forked and averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import commands

from xlpretrain.__main__ import main

STEPS = (2, 4, 6, 8)
"""Steps of the checkpoints; the last one is the end of the run."""


def train_trunk(folder: Path, dataset: Path, *, dropout: float = 0.1, **changes: Any) -> Path:
    """Train folder/runs/trunk for 8 steps at a constant rate after the warm-up, with memory and dropout."""
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_ff": 64, "mem_len": 24, "dropout": dropout}
    content = {
        "name": "trunk",
        "model": {"type": "transformer_xl", **sizes},
        "schedule": {"type": "wsd", "warmup_steps": 2, "decay_steps": 1},
        "engine": {"type": "plain", "precision": "fp32"},
        "trackers": [],
        "max_steps": STEPS[-1],
        "checkpoint": {"every_steps": 2, "keep": 4, "keep_best": True},
        "eval": {"every_steps": 4, "max_tokens": 500},
        **changes,
    }
    assert main([str(commands.write_config(folder / "trunk.yaml", dataset, **content))]) == 0
    return folder / "runs" / "trunk"
