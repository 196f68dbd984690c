"""Speed-up of two processes over one, with ZeRO-1 and with torch's DDP, compared with raw matrix products.

    make bench-ranks

A small BERT (6 layers, d 512, 4 samples of 256 tokens), 4 micro-batches per step and process, one thread per process.
All sides stay alive and take turns. Quote the ratios: absolute times mean little on a shared machine.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.cases import Case, case  # noqa: E402
from benchmarks.turns import Served, spread  # noqa: E402

MICRO_BATCHES, REPEATS = 4, int(os.environ.get("REPEATS", "5"))
SIDES = {
    "matrix products, 1": (1, "bf16"),
    "matrix products, 2": (2, "bf16"),
    "plain, 1": (1, "bf16"),
    "ZeRO-1, 1": (1, "bf16"),
    "ZeRO-1, 2": (2, "bf16"),
    "ZeRO-1 in fp32, 2": (2, "fp32"),
    "DDP in fp32, 2": (2, "fp32"),
}
"""Number of processes and precision of each side."""


def main() -> None:
    """Take turns, and print medians and ratios."""
    sides = {name: Side(name, *of) for name, of in SIDES.items()}
    for _ in range(REPEATS):
        for side in sides.values():
            side.turn()
    seconds = {name: [answer["step_s"] for answer in side.answers] for name, side in sides.items()}
    for name, side in sides.items():
        peak = max(answer["memory_bytes"] for answer in side.answers) / 2**30
        print(f"{name:20} {statistics.median(seconds[name]):7.3f} s per step, {peak:5.2f} GB per process")
        side.close()
    _ratio(
        "what two matrix products do of what one does, in a time", seconds, "matrix products, 1", "matrix products, 2"
    )
    _ratio("what ZeRO-1 on two processes does of plain on one", seconds, "plain, 1", "ZeRO-1, 2")
    _ratio("what ZeRO-1 on two processes does of itself on one", seconds, "ZeRO-1, 1", "ZeRO-1, 2")
    _ratio("ZeRO-1 of DDP, fp32, on two (1: as fast)", seconds, "DDP in fp32, 2", "ZeRO-1 in fp32, 2", work=1)


def _ratio(what: str, seconds: dict[str, list[float]], of: str, ours: str, *, work: int = 2) -> None:
    found = [work * a / b for a, b in zip(seconds[of], seconds[ours], strict=True)]
    print(f"{what}: {spread(found)} over {len(found)} repeats")


class Side:
    """The processes of a side, which wait for their turn."""

    def __init__(self, name: str, num_processes: int, precision: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.answers: list[dict[str, float]] = []
        self._ranks = [
            Served(
                [sys.executable, "-W", "ignore", __file__, name, precision],
                env={**os.environ, **_environment(rank, num_processes, port)},
            )
            for rank in range(num_processes)
        ]
        self._answer()

    def turn(self) -> None:
        """Take a step."""
        for rank in self._ranks:
            rank.tell("")
        self.answers.append(self._answer())

    def close(self) -> None:
        """Stop the processes."""
        for rank in self._ranks:
            rank.close()

    def _answer(self) -> dict[str, float]:
        answers = [rank.answer() for rank in self._ranks]
        return {key: max(answer[key] for answer in answers) for key in answers[0]}


def _environment(rank: int, num_processes: int, port: int) -> dict[str, str]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return {key: str(value) for key, value in {**own, **address}.items()}


def serve(side: str, precision: str) -> None:
    """Process of a side: takes a step for every line of stdin."""
    os.dup2(2, 1)  # DeepSpeed prints to stdout; answers go to the original pipe
    import torch

    from benchmarks.worker import resident_bytes

    of = case("bert", "small", rows=4, precision=precision, threads=1)
    step = _products() if side.startswith("matrix") else _ddp(of) if side.startswith("DDP") else _ours(of, side)
    torch.set_num_threads(1)
    step()
    answers.write(json.dumps({"step_s": 0.0}) + "\n")
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        answers.write(json.dumps({"step_s": time.perf_counter() - started, "memory_bytes": resident_bytes()}) + "\n")


def _products() -> Callable[[], Any]:
    import torch

    a = torch.ones(1024, 1024, dtype=torch.bfloat16)
    return lambda: [torch.mm(a, a) for _ in range(100)]


def _ours(of: Case, side: str) -> Callable[[], Any]:
    from benchmarks.ours import build

    keys: dict[str, Any] = {} if side.startswith("plain") else {"type": "deepspeed", "zero_stage": 1}
    step, _ = build(of, engine_keys=keys, micro_batches=MICRO_BATCHES)
    return step


def _ddp(of: Case) -> Callable[[], Any]:
    """The same model in DDP: gradients are reduced once per step, during the last micro-batch."""
    from contextlib import nullcontext

    import torch
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks.ours import make_batch, pretraining_model
    from xlpretrain import distributed

    distributed.init()
    model, objective = pretraining_model(of)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True)
    batch, mems = make_batch(of, objective), model.backbone.empty_memory(of.rows, 0)

    def step() -> None:
        for index in range(MICRO_BATCHES):
            with nullcontext() if index == MICRO_BATCHES - 1 else wrapped.no_sync():
                loss, _ = wrapped(batch, mems)
                total = sum(part / batch.counts[term] for term, part in loss.sums.items())
                (total / MICRO_BATCHES).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    if len(sys.argv) > 1:
        answers = os.fdopen(os.dup(1), "w", buffering=1)
        serve(*sys.argv[1:])
    else:
        main()
