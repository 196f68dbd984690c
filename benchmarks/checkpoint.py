"""Cost of a checkpoint for the loop, compared with a synchronous save; and the time from a signal to the end of a run.

    .venv/bin/python benchmarks/checkpoint.py [quickstart | 100m]     (after `make quickstart`, whose dataset it reads)
    .venv/bin/torchrun --nproc-per-node 2 benchmarks/checkpoint.py ...          (only the cost, on two processes)

The cost of a save is the total time by which the steps during it exceed the median step. On a shared machine, single
steps vary by more than that: read the median over saves, and compare it with the spread of as many steps without a
save.
"""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from xlpretrain import distributed
from xlpretrain.config import run_config
from xlpretrain.train.loop import train
from xlpretrain.train.run import Run
from xlpretrain.train.saving import start_save
from xlpretrain.train.setup import set_up_run

SAVES, EVERY_STEPS, SYNCHRONOUS = {"quickstart": 8, "100m": 3}, 60, 3
LARGE = "{type: transformer_xl, num_layers: 13, d_model: 768, num_heads: 12, d_ff: 3072, mem_len: 64, pre_norm: true}"
SIZES = {
    "quickstart": ["engine.type=plain", "global_batch_size=4", "micro_batch_size=4"],
    "100m": [
        "engine.type=plain",
        f"model={LARGE}",
        "objective.seq_len=64",
        "global_batch_size=2",
        "micro_batch_size=2",
    ],
}
SIGNALLED = {"quickstart": [], "100m": SIZES["100m"]}  # the unchanged quickstart config
QUIET = ["eval.every_steps=1000000", "log.every_steps=1", "wandb.mode=disabled"]


@dataclass
class Ticking:
    """The run's loader, which records the start of each step, and if a save was in flight or started in it."""

    run: _Inner
    times: list[float] = field(default_factory=list)
    saving: list[bool] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run.loader, name)

    def steps(self, start: int) -> Iterator[Any]:
        for batches in self.run.loader.steps(start=start):
            self.times.append(time.perf_counter())
            self.saving.append(bool(self.run.saver.votes(self.run.state.step).writing))
            self.begun.append(self.run.saver._attempts)
            yield batches

    def costs(self) -> tuple[float, int, list[float], list[float]]:
        """Median step without a save, steps per save, cost of each save, and of as many steps without a save."""
        steps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        began = [self.begun[i + 1] > self.begun[i] for i in range(len(steps))]
        of_a_save = [began[i] or self.saving[i] for i in range(len(steps))]
        median = statistics.median(step for step, saving in zip(steps[3:], of_a_save[3:], strict=True) if not saving)
        saves: list[list[float]] = []
        for step, new, saving in zip(steps, began, of_a_save, strict=True):
            if new:
                saves.append([])
            if saving:
                saves[-1].append(step - median)
        length = max(1, round(statistics.median(map(len, saves))))
        idle = [step - median for step, saving in zip(steps[3:], of_a_save[3:], strict=True) if not saving]
        without = [sum(idle[i : i + length]) for i in range(0, len(idle) - length + 1, length)] or [math.nan]
        return median, length, [sum(save) for save in saves], without


def cost(size: str) -> None:
    """Print the cost of a save for the loop. Every rank must call it."""
    device = distributed.init()
    leader = distributed.rank() == 0
    folder = distributed.broadcast_object(tempfile.mkdtemp(dir="runs") if leader else None)
    overrides = [f"runs_dir={folder}", f"max_steps={EVERY_STEPS * (SAVES[size] + 1)}", *SIZES[size], *QUIET]
    overrides += ["data.valid=null", f"checkpoint.every_steps={EVERY_STEPS}", "checkpoint.keep=1"]
    config = run_config.load(Path("configs/quickstart.yaml"), overrides)
    with redirect_stdout(io.StringIO()):
        run = set_up_run(config, device=device)
        ticking = Ticking(_Inner(run))
        run.loader = ticking  # type: ignore[assignment]
        with closing(run.lease), run.recorder:
            train(run)
            waited, copies = zip(*(_synchronous(run) for _ in range(SYNCHRONOUS)), strict=True)
    if leader:
        files = (run.folder.checkpoints / f"step-{run.state.step:08d}").iterdir()
        size_bytes = sum(path.stat().st_size for path in files)
        numel = sum(shape.numel() for shape in run.engine.shapes.values())
        shutil.rmtree(folder)
        median, spans, saves, without = ticking.costs()
        synchronous, behind = statistics.median(waited), statistics.median(saves)
        print(f"{size}: {numel / 1e6:.1f}M parameters, {size_bytes / 1e6:.0f} MB per checkpoint, {len(saves)} saves")
        print(f"  processes, threads each     {distributed.world_size():8d}, {torch.get_num_threads()}")
        print(f"  median step                 {1000 * median:8.0f} ms")
        print(f"  synchronous save            {1000 * synchronous:8.0f} ms  ({_range(waited)})")
        print(f"  copy alone                  {1000 * statistics.median(copies):8.1f} ms")
        print(f"  steps during a save         {spans:8d}")
        print(f"  cost of an async save       {1000 * behind:8.1f} ms  ({_range(saves)})")
        print(f"  as many steps without one   {1000 * statistics.median(without):8.1f} ms  ({_range(without)})")
        print(f"  share of a synchronous save {100 * behind / synchronous:8.1f} %", flush=True)
    distributed.shutdown()


class _Inner:
    """Build a run with a recording loader."""

    def __init__(self, run: Run):
        self.loader, self.saver, self.state = run.loader, run.saver, run.state


def _synchronous(run: Run) -> tuple[float, float]:
    run.state.step += 1
    started = time.perf_counter()
    start_save(run, behind=False)
    copied = time.perf_counter()
    assert run.saver.wait() is None
    return time.perf_counter() - started, copied - started


def end_by_signal(size: str) -> None:
    """Print the time from SIGTERM to a durable checkpoint, and to the exit of `xlpretrain train`."""
    with tempfile.TemporaryDirectory(dir="runs") as folder:
        command = [str(Path(sys.executable).parent / "xlpretrain"), "train", "configs/quickstart.yaml"]
        command += [f"runs_dir={folder}", *SIGNALLED[size], "max_steps=1000000", "log.every_steps=1"]
        command += ["checkpoint.every_steps=1000000", "eval.every_steps=1000000"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while not re.match(r"step +5/", process.stdout.readline()):
            assert process.poll() is None
        asked = time.time()
        process.send_signal(signal.SIGTERM)
        process.communicate()
        ended = time.time()
        assert process.returncode == 75, process.returncode
        (checkpoint,) = Path(folder, "quickstart", "checkpoints").iterdir()
        durable = checkpoint.stat().st_ctime  # time of the rename
    print(
        f"{size}: SIGTERM to a durable checkpoint {durable - asked:.1f} s, to the exit {ended - asked:.1f} s",
        flush=True,
    )


def _range(values: Any) -> str:
    return f"{1000 * min(values):.0f} to {1000 * max(values):.0f} ms"


if __name__ == "__main__":
    for name in sys.argv[1:] or list(SIZES):
        cost(name)
        if "RANK" not in os.environ:
            end_by_signal(name)
