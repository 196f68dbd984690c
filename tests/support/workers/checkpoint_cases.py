"""Save and restore on every rank. Usage: checkpoint_cases.py FOLDER CASE...; rank 0 writes FOLDER/CASE.json."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_model import Training, training, whole_state
from two_rules import TWO_RULES
from workers.engine_cases import ALL

from xlpretrain import distributed
from xlpretrain.checkpoint import reader
from xlpretrain.checkpoint.reader import RestoreResult
from xlpretrain.checkpoint.saver import CheckpointConfig, Saver
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.engine.config import EngineConfig
from xlpretrain.errors import CheckpointError, exit_rank
from xlpretrain.optim import AdamWConfig, LambConfig, OptimizerConfig

STREAMS = 7


OPTIMIZERS: dict[str, OptimizerConfig] = {
    "adamw": AdamWConfig(grad_clip=0.5),
    "lamb": LambConfig(grad_clip=0.5),
    "two rules": TWO_RULES,
}


def begin(config: EngineConfig, *, optimizer: str = "adamw", seed: int = 0) -> Training:
    return training(config, num_streams=STREAMS, num_micro_batches=2, optimizer=OPTIMIZERS[optimizer], seed=seed)


def save(folder: Path, run: Training, step: int, **config: Any) -> Path:
    """Save and wait. Raises `CheckpointError` if it fails."""
    saver = Saver(folder, CheckpointConfig(**config))
    streams = distributed.streams_of(distributed.rank(), distributed.world_size(), STREAMS)
    state = TrainState(step=step, tokens=step * 63, wandb_id="abc", skipped_windows=[(3, 5)])
    saver.start(state, run.engine, memory={streams: run.memory})
    if failure := saver.wait():
        raise CheckpointError(failure)
    return folder / f"step-{step:08d}"


def restore(folder: Path, run: Training) -> RestoreResult | None:
    streams = distributed.streams_of(distributed.rank(), distributed.world_size(), STREAMS)
    restored = reader.restore(folder, run.engine, streams=[streams])
    if restored is not None:
        run.memory = list(restored.memory[0].split([len(m) for m in run.micro_batches], dim=1))
    return restored


def try_to_save(folder: Path, run: Training, step: int) -> list[str | None]:
    """Error message on each rank."""
    try:
        save(folder, run, step)
    except CheckpointError as error:
        return distributed.gather_objects(str(error))
    return distributed.gather_objects(None)


def _same_layout(folder: Path, names: list[str]) -> Any:
    """Restore into an engine with other weights that has already stepped, and compare with an uninterrupted run."""
    found = {}
    for name in names:
        run = begin(ALL[name])
        run.steps(0, 4)
        save(folder / name, run, 4)
        expected, state = run.steps(4, 8), whole_state(run.engine)
        again = begin(ALL[name], seed=1)
        again.steps(20, 22)
        restored = restore(folder / name, again)
        assert restored is not None and restored.state == TrainState(4, 252, "abc", [(3, 5)])
        assert restored.differences == []
        found[name] = {
            "losses": again.steps(4, 8) == expected,
            "state": all(torch.equal(state[key], values) for key, values in whole_state(again.engine).items()),
            "updates": again.engine.num_updates,
        }
    return found


def same_layout(folder: Path) -> Any:
    return _same_layout(folder / "same", ["plain fp32", "zero 1 bf16", "zero 3 fp32"])


def same_layout_full(folder: Path) -> Any:
    return _same_layout(folder / "same", list(ALL))


def elastic_save(folder: Path) -> Any:
    """Save a checkpoint to be resumed by another number of ranks."""
    found = {}
    for name in OPTIMIZERS:
        run = begin(ALL["zero 1 fp32"], optimizer=name)
        run.steps(0, 3)
        save(folder / "elastic" / name, run, 3)
        run.steps(3, 4)
        save(folder / "elastic" / name, run, 4)
        found[name] = run.steps(4, 8)
    return found


def elastic_load(folder: Path) -> Any:
    found = {}
    for name in OPTIMIZERS:
        run = begin(ALL["zero 3 fp32"], optimizer=name, seed=1)
        restored = restore(folder / "elastic" / name, run)
        assert restored is not None
        losses = run.steps(4, 8)
        found[name] = {"losses": losses, "differences": restored.differences, "updates": run.engine.num_updates}
    return found


def damaged_on_one_rank(folder: Path) -> Any:
    """Damage a file that only rank 1 reads."""
    run = begin(ALL["zero 2 fp32"])
    run.steps(0, 1)
    save(folder / "one", run, 1)
    expected = whole_state(run.engine)
    run.steps(1, 2)
    save(folder / "one", run, 2)
    if distributed.rank() == 0:
        path = folder / "one" / "step-00000002" / "rank-00001.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    distributed.barrier()
    again = begin(ALL["zero 2 fp32"], seed=1)
    restored = restore(folder / "one", again)
    assert restored is not None
    found = whole_state(again.engine)
    return {
        "step": distributed.gather_objects(restored.state.step),
        "state": all(torch.equal(expected[key], found[key]) for key in expected),
        "damaged": [path.name for path in (folder / "one" / "damaged").iterdir()],
    }


def one_rank_cannot_write(folder: Path) -> Any:
    run = begin(ALL["zero 2 fp32"])
    run.steps(0, 1)
    save(folder / "unwritable", run, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if distributed.rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    told = try_to_save(folder / "unwritable", run, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = sorted(path.name for path in (folder / "unwritable").iterdir())
    run.steps(1, 2)
    return {"told": told, "left": left, "later": try_to_save(folder / "unwritable", run, 2)}


def full_disk(folder: Path) -> Any:
    """FOLDER/full is a disk of 256 KiB."""
    run = begin(ALL["zero 2 fp32"])
    run.steps(0, 1)
    save(folder / "full" / "checkpoints", run, 1)
    ballast = folder / "full" / "ballast"
    if distributed.rank() == 0:
        free = os.statvfs(folder / "full")
        ballast.write_bytes(bytes((free.f_bavail - 3) * free.f_bsize))
    distributed.barrier()
    told = try_to_save(folder / "full" / "checkpoints", run, 2)
    left = sorted(path.name for path in (folder / "full" / "checkpoints").iterdir())
    if distributed.rank() == 0:
        ballast.unlink()
    distributed.barrier()
    return {"told": told, "left": left, "later": try_to_save(folder / "full" / "checkpoints", run, 2)}


def killed_in_mid_save(folder: Path) -> Any:
    run = begin(ALL["plain fp32"])
    run.steps(0, 4)
    save(folder / "killed", run, 4)
    run.steps(4, 5)
    if distributed.rank() == 1:
        while not list((folder / "killed").glob(".tmp-*/rank-00000.done")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    save(folder / "killed", run, 5)


def main(folder: str, *cases: str) -> None:
    distributed.init()
    for case in cases:
        found = globals()[case](Path(folder))
        if distributed.rank() == 0:
            Path(folder, f"{case}.json").write_text(json.dumps(found))
    distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_rank(0)
