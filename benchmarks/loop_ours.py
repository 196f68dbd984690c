"""Our side of `loop.py`: `loop_ours.py CONFIG KEY=VALUE ...`. Stdin: lines `bare` or `loop`; an answer is seconds."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from xlpretrain import distributed
from xlpretrain.config import run_config
from xlpretrain.train.loop import train
from xlpretrain.train.run import Run
from xlpretrain.train.setup import set_up_run
from xlpretrain.train.throughput import StepTimer

STEPS = 20


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    device = distributed.init()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"runs_dir={folder}", "engine.type=plain", "max_steps=100000", "eval.every_steps=1000000"]
        overrides += [f"checkpoint.every_steps={STEPS}", "data.valid=null", *sys.argv[2:]]
        run = set_up_run(run_config.load(Path(sys.argv[1]), overrides), device=device)
        with closing(run.lease), run.recorder:
            answers.write(f"{STEPS * run.config.tokens_per_step}\n")
            for line in sys.stdin:
                answers.write(f"{_bare(run) if line.strip() == 'bare' else _loop(run)}\n")
    distributed.shutdown()


def _bare(run: Run) -> float:
    engine = run.engine
    steps = [run.loader.step(step) for step in range(STEPS)]
    started = time.perf_counter()
    for batches in steps:
        engine.start_step({term: sum(batch.counts[term] for batch in batches) for term in batches[0].counts})
        for batch, mems in zip(batches, run.memory, strict=True):
            loss, _ = engine.forward(batch.to(engine.device), mems)
            engine.backward(loss)
        engine.update(1e-9)
    return time.perf_counter() - started


def _loop(run: Run) -> float:
    run.config = run.config.model_copy(update={"max_steps": run.state.step + STEPS})
    run.step_timer = StepTimer()
    started = time.perf_counter()
    train(run)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
