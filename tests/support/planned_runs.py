"""Configs of small runs to plan, whose data need not exist."""

from __future__ import annotations

from typing import Any

from imported_runs import OBJECTIVES, SIZES

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig

VOCAB = 300


def planned_config(kind: str = "transformer_xl", /, **changes: Any) -> RunConfig:
    """A run of a tiny model with dropout; `changes` replace keys of the config."""
    memory = {"mem_len": 12} if kind in ("transformer_xl", "xlnet") else {}
    config = {
        "data": {"train": "data/train"},
        "model": {"type": kind, **SIZES, **memory, "dropout": 0.1, "attention_dropout": 0.1},
        "objective": OBJECTIVES[kind],
        "global_batch_size": 12,
        "micro_batch_size": 3,
        "max_steps": 1,
        **changes,
    }
    return schema.validate(RunConfig, config, "planned")
