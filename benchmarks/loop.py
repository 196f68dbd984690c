"""Overhead of the training loop, ours and the Trainer of transformers: complete steps vs. bare ones.

    make bench-loop       (after `make quickstart`, whose dataset it reads)

A bare step is forward, backward, clipping and update on prepared batches. A step of a loop also reads, masks and
collates data, logs every tenth step, and writes one checkpoint per repeat; ours also synchronizes with other ranks and
logs to W&B (offline). Both loops train a BERT (6 layers, d 512, 128 tokens per sample) on the tokens of the quickstart,
16 samples per step, in bf16 with dropout. All sides stay alive and take turns. Quote the ratios: absolute times mean
little on a shared machine.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import environments  # noqa: E402
from benchmarks.turns import Served, spread  # noqa: E402

REPEATS = int(os.environ.get("REPEATS", "5"))
SIDES = {
    "quickstart": (sys.executable, "loop_ours.py", "configs/quickstart.yaml"),
    "BERT": (
        sys.executable,
        "loop_ours.py",
        "configs/bert_small.yaml",
        "model.num_layers=6",
        "model.d_model=512",
        "model.num_heads=8",
        "model.d_ff=2048",
        "model.dropout=0.1",
        "model.attention_dropout=0.1",
        "model.pre_norm=false",
        "objective.sentence_task=none",
        "global_batch_size=16",
        "micro_batch_size=16",
    ),
    "Trainer": ("", "loop_trainer.py", "data/quickstart/train"),
}


def main() -> None:
    """Take turns, and print medians and ratios."""
    sides = {name: Side(*command) for name, command in SIDES.items()}
    for _ in range(REPEATS):
        for side in sides.values():
            side.turn()
    for name, side in sides.items():
        side.close()
        bare, loop = (side.tokens / statistics.median(times) for times in (side.bare, side.loop))
        of_bare = spread([a / b for a, b in zip(side.bare, side.loop, strict=True)])
        print(f"{name:10}  bare {bare:7,.0f} tokens/s  loop {loop:7,.0f} tokens/s  loop / bare {of_bare}")
    ours, theirs = sides["BERT"], sides["Trainer"]
    scale = ours.tokens / theirs.tokens
    bare = spread([scale * b / a for a, b in zip(ours.bare, theirs.bare, strict=True)])
    loop = spread([scale * b / a for a, b in zip(ours.loop, theirs.loop, strict=True)])
    print(f"ours / Trainer: bare {bare}, loop {loop}, over {REPEATS} repeats")


class Side:
    """A worker process that takes bare steps, then as many steps of its loop."""

    def __init__(self, python: str, script: str, *arguments: str):
        self._worker = Served([python or environments.trainer(), "-W", "ignore", HERE / script, *arguments])
        self.tokens: int = self._worker.answer()
        for what in ("bare", "loop"):  # warm-up
            self._worker.ask(what)
        self.bare: list[float] = []
        self.loop: list[float] = []

    def turn(self) -> None:
        """Record the time of both."""
        self.bare.append(self._worker.ask("bare"))
        self.loop.append(self._worker.ask("loop"))

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()


if __name__ == "__main__":
    main()
