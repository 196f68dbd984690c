"""Writing a checkpoint: every rank its own file, rank 0 the manifest and the rename that makes it one."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Shaped
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.checkpoint.format import (
    MANIFEST,
    TEMPORARY,
    File,
    Manifest,
    Parameter,
    checkpoint_name,
    chunk_checksums,
    list_checkpoints,
    memory_key,
    rank_file,
    tensor_key,
)
from xlpretrain.durable import replace_file, sync
from xlpretrain.engine.engine import Engine
from xlpretrain.errors import CheckpointError
from xlpretrain.schema import Section
from xlpretrain.state import TrainState

POLL_S = 0.02


class CheckpointConfig(Section):
    """When checkpoints are written, and how many stay."""

    every_steps: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=1)] = 3
    """How many of the newest stay on the disk."""


def save(
    checkpoints: Path,
    state: TrainState,
    engine: Engine,
    *,
    streams: range,
    memory: Shaped[Tensor, "L S M D"],
    keep: int,
    wait_s: float = 1500.0,
) -> Path:
    """Write a checkpoint of `state.step`, and remove what is then more than `keep`. Every rank must call it.

    Nothing counts until rank 0 renames the finished folder; it learns from files that the others are done, so that the
    commit needs no collective. Only the outcome is told by one.

    Args:
        streams: those this rank works on, and `memory` theirs.
        wait_s: how long rank 0 waits for the others' files; less than the process group's own limit.

    Raises:
        CheckpointError: on every rank, if any of them could not write; older checkpoints are as they were.
    """
    temporary = checkpoints / f"{TEMPORARY}{checkpoint_name(state.step)}"
    _write_own(temporary, engine, streams, memory)
    error: str | None = None
    if distributed.rank() == 0:
        try:
            _wait_for_all(temporary, wait_s)
            _commit(temporary, checkpoints / checkpoint_name(state.step), state, engine)
            for old in list_checkpoints(checkpoints)[keep:]:
                _remove(old)
        except (OSError, CheckpointError) as caught:
            error = f"the checkpoint of step {state.step} could not be written to {checkpoints}: {caught}"
    error = distributed.broadcast_object(error)
    if error is not None:
        distributed.barrier()  # else another rank may still be writing to what is removed
        if distributed.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        distributed.barrier()
        raise CheckpointError(error)
    return checkpoints / checkpoint_name(state.step)


def _write_own(folder: Path, engine: Engine, streams: range, memory: Tensor) -> None:
    """This rank's file, and beside it a `.done` that describes it or a `.failed` that says why not."""
    name = rank_file(distributed.rank())
    path = folder / f"{name}.safetensors"
    ranges = engine.state_ranges()
    tensors = {tensor_key(r.kind, r.name, r.start): r.tensor for r in ranges}
    if streams:
        tensors[memory_key(streams.start)] = memory.contiguous()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
        sync(path)
        done = {
            "file": asdict(File(path.stat().st_size, list(chunk_checksums(path)))),
            "ranges": [(r.kind, r.name, r.start, r.stop) for r in ranges],
            "streams": (streams.start, streams.stop),
        }
        replace_file(folder / f"{name}.done", json.dumps(done))
    except (OSError, SafetensorError) as error:
        try:
            path.unlink(missing_ok=True)  # on a full disk, makes room to say so
            replace_file(folder / f"{name}.failed", f"rank {distributed.rank()}: {error}")
        except OSError:
            pass  # rank 0 stops waiting by itself


def _wait_for_all(folder: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    missing = {rank_file(rank) for rank in range(distributed.world_size())}
    while missing:
        for path in folder.glob("*.failed") if folder.is_dir() else ():
            raise CheckpointError(path.read_text(encoding="utf-8"))
        missing -= {name for name in missing if (folder / f"{name}.done").exists()}
        if missing and time.monotonic() > deadline:
            raise CheckpointError(f"no sign of {', '.join(sorted(missing))} within {wait_s:g} s")
        if missing:
            time.sleep(POLL_S)


def _commit(temporary: Path, final: Path, state: TrainState, engine: Engine) -> None:
    """Describe all ranks' files in a manifest, then make the folder a checkpoint by its name. Rank 0 alone."""
    done = [_take_done(temporary, rank) for rank in range(distributed.world_size())]
    files = {f"{rank_file(rank)}.safetensors": File(**d["file"]) for rank, d in enumerate(done)}
    owned = [(*r, name) for name, d in zip(files, done, strict=True) for r in d["ranges"]]
    kinds = sorted({kind for kind, *_ in owned})
    manifest = Manifest(
        step=state.step,
        state=asdict(state),
        layout=layout(engine),
        updates=engine.updates,
        kinds=kinds,
        parameters=dict(_parameters(engine.shapes, kinds, owned)),
        memory=sorted((*d["streams"], name) for name, d in zip(files, done, strict=True) if len(range(*d["streams"]))),
        files=files,
    )
    replace_file(temporary / MANIFEST, manifest.to_json())
    sync(temporary)
    if final.exists():
        _remove(final)  # the same step of the same run, saved again
    temporary.rename(final)
    sync(final.parent)


def _take_done(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f"{rank_file(rank)}.done"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return content


def _parameters(
    shapes: Mapping[str, torch.Size], kinds: list[str], owned: list[tuple[str, str, int, int, str]]
) -> Iterator[tuple[str, Parameter]]:
    """Each parameter's ranges; they must tile it, and be the same for all kinds, or nothing is committed."""
    by_name: dict[str, dict[str, list[tuple[int, int, str]]]] = {name: {kind: [] for kind in kinds} for name in shapes}
    for kind, name, start, stop, file in owned:
        by_name[name][kind].append((start, stop, file))
    for name, by_kind in by_name.items():
        ranges = sorted(by_kind[kinds[0]])
        bounds = [0, *(stop for _, stop, _ in ranges)]
        assert [start for start, _, _ in ranges] == bounds[:-1], f"{name}: ranges with gaps or overlaps: {ranges}"
        assert bounds[-1] == shapes[name].numel(), f"{name}: ranges end at {bounds[-1]}, not at {shapes[name].numel()}"
        assert all(sorted(other) == ranges for other in by_kind.values()), f"{name}: ranges differ between kinds"
        yield name, Parameter(list(shapes[name]), ranges)


def layout(engine: Engine) -> dict[str, Any]:
    """What going on must share with what was saved to be bit-identical."""
    return {
        "world_size": distributed.world_size(),
        **engine.layout,
        "threads": torch.get_num_threads(),
        "device": _device_name(engine.device),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed") if engine.layout["engine"] == "deepspeed" else None,
        "xlpretrain": version("xlpretrain"),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _remove(checkpoint: Path) -> None:
    """Take its name away first: a removal that is cut off must not leave a part of a checkpoint."""
    going = checkpoint.with_name(f"{TEMPORARY}old-{checkpoint.name}-{os.getpid()}")
    checkpoint.rename(going)
    shutil.rmtree(going)
