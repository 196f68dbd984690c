"""Moving averages of the weights on every rank, against their formula in float64.

Usage: average_cases.py FOLDER; rank 0 writes FOLDER/average.json, and each case a checkpoint in FOLDER/NAME.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tiny_model import Training, tiny_batch, training, whole_state
from torch import Tensor
from workers.checkpoint_cases import STREAMS, restore, save
from workers.engine_cases import ALL

from xlpretrain import distributed
from xlpretrain.engine.config import EngineConfig
from xlpretrain.errors import exit_rank
from xlpretrain.optim import AdamWConfig
from xlpretrain.optim.base import AverageConfig

DECAY, EVERY, AT, END = 0.9, 2, 7, 11
THEN = {"plain fp32": "zero 2 fp32", "zero 1 fp32": "zero 3 fp32", "zero 2 bf16": "plain bf16"}
THEN |= {"zero 2 fp32": "plain fp32", "zero 3 fp32": "zero 1 fp32"}
"""Engines, and those that go on from their checkpoints with the same ranks."""
Weights = dict[str, Tensor]


def begin(config: EngineConfig, *, seed: int = 0) -> Training:
    optimizer = AdamWConfig(grad_clip=0.5, average=AverageConfig(decay=DECAY, every=EVERY))
    return training(config, num_streams=STREAMS, num_micro_batches=2, optimizer=optimizer, seed=seed)


def follow(run: Training, start: int, stop: int) -> list[Weights]:
    """Train, with a skipped update at step 2; returns the weights after every update that counts."""
    history = []
    for step in range(start, stop):
        before = run.engine.num_updates
        run.steps(step, step + 1, poisoned=2)
        if run.engine.num_updates > before and run.engine.num_updates % EVERY == 0:
            history.append(
                {name: values for (kind, name), values in whole_state(run.engine).items() if kind == "weight"}
            )
    return history


def error(run: Training, history: list[Weights]) -> float:
    """The largest difference of the average from its formula in float64."""
    state, count = whole_state(run.engine), len(history)
    largest = 0.0
    for name in run.engine.shapes:
        terms = [DECAY ** (count - 1 - t) * weights[name].double() for t, weights in enumerate(history)]
        expected = torch.stack(terms).sum(dim=0) * (1 - DECAY) / (1 - DECAY**count)
        largest = max(largest, float((state["average", name].double() - expected).abs().max()))
    return largest


def held_out_loss(run: Training) -> float:
    """Summed loss of a batch that is not trained on."""
    streams = distributed.streams_of(distributed.rank(), distributed.world_size(), STREAMS)
    memory = run.engine.model.backbone.empty_memory(len(streams), 5)
    loss, _ = run.engine.evaluate(tiny_batch(1000, streams), memory)
    return float(distributed.all_reduce_sum([float(loss.sums["lm"])])[0])


def measure(folder: Path, name: str, then: str) -> dict[str, object]:
    run = begin(ALL[name])
    history = follow(run, 0, AT)
    before, loss = whole_state(run.engine), held_out_loss(run)
    with run.engine.averaged():
        averaged, inside = held_out_loss(run), whole_state(run.engine)
    after = whole_state(run.engine)
    found: dict[str, object] = {
        "counted": len(history),
        "error": error(run, history),
        "loss": loss,
        "averaged": averaged,
        "swapped": all(torch.equal(inside["weight", n], before["average", n]) for n in run.engine.shapes),
        "same": all(torch.equal(after[key], values) for key, values in before.items()) and held_out_loss(run) == loss,
    }
    save(folder / name, run, AT)
    again = begin(ALL[then], seed=1)
    assert restore(folder / name, again) is not None
    found["resumed"] = error(again, history + follow(again, AT, END))
    if distributed.rank() == 0:
        torch.save(history, folder / name / "history.pt")
    return found


def main(place: str) -> None:
    folder = Path(place)
    distributed.init()
    found = {name: measure(folder, name, then) for name, then in THEN.items()}
    if distributed.rank() == 0:
        (folder / "average.json").write_text(json.dumps(found))
    distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_rank(0)
