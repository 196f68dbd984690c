"""Shares of a training step of the base models, in bf16 on one thread, in the groups of `xlpretrain profile`.

.venv/bin/python benchmarks/shares.py      prints a table in Markdown
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import MODELS, case
from benchmarks.ours import build_engine, step_of
from xlpretrain import distributed
from xlpretrain.engine import Engine
from xlpretrain.profiling.recording import Recording
from xlpretrain.profiling.shares import GROUPS, StepShares, step_shares
from xlpretrain.profiling.trace import read_trace
from xlpretrain.train.callbacks.performance.profile import module_ranges


def main() -> None:
    """Print the table."""
    found = {model: shares(model) for model in MODELS}
    print("| share of a step | " + " | ".join(MODELS) + " | |")
    print("|---" * (len(MODELS) + 2) + "|")
    for group, what in GROUPS.items():
        cells = (f"{100 * found[model].seconds[group] / found[model].step_s:.1f} %" for model in MODELS)
        print(f"| {group} | {' | '.join(cells)} | {what} |")


def shares(model: str) -> StepShares:
    """Shares of the second step of a model."""
    of = case(model, "base", rows=2, precision="bf16", threads=1)
    engine, batch, _ = build_engine(of)
    torch.set_num_threads(of.threads)
    step = step_of(of, engine, batch)
    step()
    found = profiled(step, engine)
    distributed.shutdown()
    return found


def profiled(step: Callable[[], Any], engine: Engine) -> StepShares:
    """Shares of one step."""
    recording = Recording(module_ranges(engine.model), engine.device)
    recording.start()
    step()
    recording.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json.gz"
        recording.write_trace(trace)
        return step_shares(read_trace(trace))


if __name__ == "__main__":
    main()
