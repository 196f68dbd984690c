"""What a loop costs around the model, ours and the Trainer of transformers: whole training steps against bare ones.

    make bench-loop       (after `make quickstart`, whose dataset it reads)

A bare step is forward, backward, clipping and update on batches that lie ready. A step of a loop also reads, masks and
collates data, logs every tenth step, and writes one checkpoint per repeat; ours agrees with other ranks and tells W&B
(offline) too. Both loops train a BERT (6 layers, d 512, rows of 128) on the tokens of the quickstart, 16 rows a step,
in bf16 with dropout. All sides stay alive and take turns. Quote the ratios: times alone mean little on a
shared machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import environments  # noqa: E402

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
    for _ in range(REPEATS + 1):
        for side in sides.values():
            side.turn()
    for name, side in sides.items():
        side.close()
        bare, loop = (side.tokens / statistics.median(times) for times in (side.bare, side.loop))
        of_bare = _spread([a / b for a, b in zip(side.bare, side.loop, strict=True)])
        print(f"{name:10}  bare {bare:7,.0f} tokens/s  loop {loop:7,.0f} tokens/s  loop of bare {of_bare}")
    ours, theirs = sides["BERT"], sides["Trainer"]
    scale = ours.tokens / theirs.tokens
    bare = _spread([scale * b / a for a, b in zip(ours.bare, theirs.bare, strict=True)])
    loop = _spread([scale * b / a for a, b in zip(ours.loop, theirs.loop, strict=True)])
    print(f"ours of the Trainer's: bare {bare}, loop {loop}, over {REPEATS} repeats")


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


class Side:
    """A worker that waits for its turn: bare steps, then as many of its loop. The first turn warms up."""

    def __init__(self, python: str, script: str, *arguments: str):
        command = [python or str(environments.trainer()), "-W", "ignore", str(HERE / script), *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.tokens = int(self._answer())
        self.bare: list[float] = []
        self.loop: list[float] = []
        self._warm = False

    def turn(self) -> None:
        """Note how long both take."""
        bare, loop = (float(self._ask(what)) for what in ("bare", "loop"))
        if self._warm:
            self.bare.append(bare)
            self.loop.append(loop)
        self._warm = True

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, what: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"a side ended; run it by hand: {' '.join(map(str, self._process.args))}"
        return line


if __name__ == "__main__":
    main()
