"""What the loop costs around the model: whole training steps against bare ones of the same model, taken in turn.

    make bench-loop       (after `make quickstart`, whose dataset it reads)

A bare step is forward, backward, clipping and update on batches that lie ready. A step of the loop also reads and
collates data, agrees with the other ranks, logs every tenth step to metrics.jsonl, W&B (offline) and the console, and
writes one checkpoint per repeat. Quote the ratio: times alone mean little on a shared machine.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from contextlib import closing, redirect_stdout
from pathlib import Path

from xlpretrain import config as configuration
from xlpretrain import distributed
from xlpretrain.build import build
from xlpretrain.metrics import Stopwatch
from xlpretrain.run import Run
from xlpretrain.trainer import train

STEPS, REPEATS = 20, 5


def main() -> None:
    """Print the median ratio and its range."""
    device = distributed.start()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        overrides = [f"runs_dir={folder}", "engine.type=plain", f"max_steps={STEPS * (REPEATS + 1)}"]
        overrides += ["eval.every_steps=1000000", f"checkpoint.every_steps={STEPS}", "data.valid=null"]
        config = configuration.load(Path("configs/quickstart.yaml"), overrides)
        run = build(config, device=device)
        with closing(run.lease), run.recorder:
            times = [(_bare(run), _loop(run)) for _ in range(REPEATS + 1)][1:]  # the first of each warms up
    distributed.stop()
    ratios = sorted(bare / loop for bare, loop in times)
    tokens = STEPS * config.tokens_per_step
    print(f"bare step   {tokens / statistics.median(b for b, _ in times):8,.0f} tokens per second")
    print(f"whole loop  {tokens / statistics.median(loop for _, loop in times):8,.0f} tokens per second")
    print(f"ratio       {statistics.median(ratios):8.3f}  ({ratios[0]:.3f} to {ratios[-1]:.3f} over {REPEATS} repeats)")


def _bare(run: Run) -> float:
    engine = run.engine
    steps = [run.loader.step(step) for step in range(STEPS)]
    started = time.perf_counter()
    for batches in steps:
        engine.start_step({"lm": sum(batch.counts["lm"] for batch in batches)})
        for batch, mems in zip(batches, run.mems, strict=True):
            loss, _ = engine(batch.to(engine.device), mems)
            engine.backward(loss)
        engine.step(1e-9)
    return time.perf_counter() - started


def _loop(run: Run) -> float:
    run.config = run.config.model_copy(update={"max_steps": run.state.step + STEPS})
    run.watch = Stopwatch()
    started = time.perf_counter()
    train(run)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
