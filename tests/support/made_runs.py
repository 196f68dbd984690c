"""Run folders with made-up metrics, as a training run would have written them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

STARTED_AT = 1_795_800_000.0


def make_rows(
    count: int, *, every: int = 1, seed: int = 0, evaluate_every: int = 0, crash_at: int = 0
) -> list[dict[str, Any]]:
    """Rows of `count` logged steps, every `every` steps. crash_at: logged step before which the run restarted."""
    rng = np.random.default_rng(seed)
    steps = every * np.arange(1, count + 1)
    losses = 2.4 + 0.1 * seed + 8 / np.sqrt(1 + steps / 50) + rng.gamma(2.0, 0.05, count)
    norms, speeds = rng.gamma(4.0, 0.2, count), 52_000 + 1500 * rng.standard_normal(count)
    rows, spent, restarts, away_s = [], 0.0, 0, 0.0
    for i in range(count):
        step, step_s = int(steps[i]), 16_384 / float(speeds[i])
        if i == crash_at > 0:
            restarts, away_s = 1, 420.0
        spent += every * step_s
        row = {
            "step": step,
            "tokens": 16_384 * step,
            "train/loss": float(losses[i]),
            "train/lr": 3e-4 * min(step / 1000, (1000 / step) ** 0.5),
            "train/grad_norm": float(norms[i]),
            "train/loss/lm": float(losses[i]),
            "data/epoch": step / 40_000,
            "events/skipped_updates": 0,
            "events/rollbacks": 0,
            "memory/peak_bytes": 31_000_000_000,
            "time/step_s": step_s,
            "time/data_wait_s": float(rng.exponential(0.002)),
            "time/tokens_per_second": float(speeds[i]),
            "time/mfu": float(speeds[i]) / 1.3e5,
        }
        if evaluate_every and (i + 1) % evaluate_every == 0:
            held_out = float(2.5 + 0.1 * seed + 8 / np.sqrt(1 + step / 50))
            row |= {
                "valid/loss": held_out,
                "valid/perplexity": float(np.exp(held_out)),
                "valid/lm_accuracy": 1 / held_out,
            }
        total = 1.06 * spent + away_s
        rows.append(
            row
            | {
                "goodput/share": spent / total,
                "goodput/step_s": spent,
                "goodput/data_wait_s": 0.01 * spent,
                "goodput/save_s": 0.02 * spent,
                "goodput/eval_s": 0.03 * spent,
                "goodput/lost_s": 0.0,
                "goodput/restart_s": away_s,
                "goodput/steps_redone": 3 * restarts,
                "goodput/restarts": restarts,
                "time/logged_at_s": STARTED_AT + total,
            }
        )
    return rows


def append_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a run's metrics."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make_run(folder: Path, rows: list[dict[str, Any]], config: Mapping[str, Any] | None = None, **status: Any) -> Path:
    """Write a run folder with the given metrics; `config` and `status` replace defaults."""
    folder.mkdir(parents=True)
    content = {
        "name": folder.name,
        "runs_dir": str(folder.parent),
        "seed": 1,
        "data": {"type": "corpus", "train": "data/words/train", "valid": "data/words/valid"},
        "model": {"type": "transformer_xl", "d_model": 512, "mem_len": 128},
        "objective": {"type": "causal_lm", "seq_len": 128},
        "optimizer": {"type": "adamw", "lr": 3e-4},
        "init_from": None,
        "max_steps": 100_000,
        "trackers": [{"type": "wandb", "mode": "disabled"}],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**content, **(config or {})}, sort_keys=False))
    (folder / "provenance.json").write_text(
        json.dumps(
            {"began_at": "2026-11-28T05:01:20+0000", "host": "node1", "versions": {"torch": "2.13.0"}, "id": "ab12"}
        )
    )
    if rows:
        append_rows(folder, rows)
        last = rows[-1]
        fixed = {
            "state": "finished",
            "reason": "finished",
            "step": last["step"],
            "max_steps": 100_000,
            "world_size": 8,
            "updated_at": time.time(),
            "goodput": {name: value for name, value in last.items() if name.startswith("goodput/")},
        }
        (folder / "status.json").write_text(json.dumps({**fixed, **status}))
    return folder
