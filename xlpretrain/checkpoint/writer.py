"""Writing a copied state to disk: every rank its own file, rank 0 the manifest and the committing rename.

A rank's file is laid out in host memory as it will be on disk; training waits only for the copy into it. Nothing else
here calls a collective or touches a live tensor: it runs on a thread behind the loop. Rank 0 learns from files
(`rank-R.done`) that the others are done, and all ranks from an event that another one failed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from xlpretrain.checkpoint.files import (
    CHUNK,
    MANIFEST,
    CheckpointManifest,
    DamagedError,
    FileEntry,
    ParameterEntry,
    checkpoint_name,
    checksum,
    clear_temporary,
    prune,
    quarantine,
    rank_file,
    remove,
    set_aside,
    temporary_name,
    tensor_key,
    verify_whole,
)
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.errors import CheckpointError
from xlpretrain.file_system.atomic_files import atomic_write, fsync
from xlpretrain.models.pretraining_model import PretrainingModel

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_PAGE = 4096
Spec = tuple[str, torch.dtype, tuple[int, ...]]


class HostBuffer:
    """Memory for a file in the safetensors format, used again as long as the same tensors come.

    The format: 8 bytes that give the length of a JSON header (key: dtype, shape, offsets), the header, and the tensors
    end to end. Written here and not by the package, since it would read live tensors while it writes.
    """

    def __init__(self) -> None:
        self._specs: list[Spec] = []
        self._slots: list[Tensor] = []
        self._content = memoryview(b"")

    def copy(self, tensors: Mapping[str, Tensor]) -> memoryview:
        """The file's bytes, with the tensors as they are now (those of the larger dtype first). On CUDA it waits."""
        specs = [(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]
        on_cuda = any(tensor.is_cuda for tensor in tensors.values())
        if specs != self._specs:
            self._lay_out(specs, pinned=on_cuda)
        for slot, tensor in zip(self._slots, tensors.values(), strict=True):
            slot.copy_(tensor.detach(), non_blocking=True)
        if on_cuda:
            torch.cuda.synchronize()
        return self._content

    def _lay_out(self, specs: list[Spec], *, pinned: bool) -> None:
        header: dict[str, object] = {}
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in specs]
        end = 0
        for (key, dtype, shape), size in zip(specs, sizes, strict=True):
            header[key] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        self._slots, self._content = [], memoryview(b"")  # gone before there are two of them
        buffer = torch.zeros(_PAGE + start + end, dtype=torch.uint8, pin_memory=pinned)
        buffer.fill_(0)  # touches every page now, not while a save holds the loop
        buffer = buffer[-buffer.data_ptr() % _PAGE :][: start + end]  # for writing past the page cache
        self._content = buffer.numpy().data
        self._content[:start] = len(text).to_bytes(8, "little") + text
        pieces = torch.split(buffer[start:], sizes)
        self._slots = [piece.view(dtype).view(shape) for piece, (_, dtype, shape) in zip(pieces, specs, strict=True)]
        self._specs = specs


POLL_S = 0.02
_DIRECT = getattr(os, "O_DIRECT", 0)


class StaleDirectoryError(CheckpointError):
    """The folder was taken away: another rank's failure, or another start of the run, is the reason."""


@dataclass(frozen=True)
class SaveTarget:
    """The folder for checkpoints, the process that owns it, and which checkpoints to keep.

    owner: the number of this start of the run; a later one has a higher number, and removes what an earlier one was
        writing. fence: raises if there is one; rank 0 calls it. before_commit: what must be on the disk first.
    keep_best: whether that of the state's best step stays.
    verified: the step whose checkpoint this start has read, and found whole: the only one known to be, so it stays.
    """

    checkpoints: Path
    rank: int
    world_size: int
    owner: int
    fence: Callable[[], None]
    before_commit: Callable[[], None]
    keep: int
    keep_every: int | None
    keep_best: bool
    verified: int | None


@dataclass(frozen=True)
class StateSnapshot:
    """A state, copied from the loop.

    attempt: the number of this save in this start of the run. content: this rank's file. ranges: (kind, name, start,
    stop) of what it holds; streams: [first, stop), whose memories it holds. The rest is for the manifest, and the same
    on every rank.
    """

    step: int
    attempt: int
    content: memoryview
    ranges: list[tuple[str, str, int, int]]
    streams: tuple[int, int]
    state: dict[str, Any]
    layout: dict[str, Any]
    updates: int
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, tuple[str, ...]]


def write_checkpoint(place: SaveTarget, copied: StateSnapshot, gave_up: Event) -> None:
    """This rank's part in a save. Every rank must call it.

    Raises:
        OSError, CheckpointError: this rank's part failed; its folder is removed, older checkpoints are as they were.
        XLPretrainError: by the fence; this start of the run is over.
    """
    folder = place.checkpoints / temporary_name(place.owner, copied.step, copied.attempt)
    if place.rank != 0:
        _wait_until(folder.is_dir, gave_up)
        try:
            _write_own(folder, place, copied)
        except OSError as error:
            raise (error if folder.is_dir() else StaleDirectoryError(f"{folder} is gone")) from None
        return
    with suppress(OSError):
        clear_temporary(place.checkpoints, owner=place.owner)  # where a failed save could not even be removed
    try:
        folder.mkdir(parents=True)
        place.fence()
        _write_own(folder, place, copied)
        done = {rank_file(rank): folder / f"{rank_file(rank)}.done" for rank in range(place.world_size)}
        _wait_until(lambda: all(path.exists() for path in done.values()), gave_up)
        place.fence()
        _write_manifest(folder, copied, {name: json.loads(path.read_text()) for name, path in done.items()})
        for path in done.values():
            path.unlink()
        fsync(folder)
        place.before_commit()
        _commit(folder, place, copied)
    except BaseException:
        with suppress(OSError):
            remove(folder, owner=place.owner)
        place.fence()  # if the folder is gone because another start took over, say that
        raise


def amend(place: SaveTarget, step: int, state: dict[str, Any]) -> None:
    """Replace the state that the checkpoint of a step holds: its evaluation has been done since. Rank 0 alone.

    Raises:
        OSError, DamagedError: it is as it was.
        XLPretrainError: by the fence; this start of the run is over.
    """
    folder = place.checkpoints / checkpoint_name(step)
    manifest = replace(CheckpointManifest.read(folder), state=state)
    temporary = place.checkpoints / temporary_name(place.owner, step, 0)  # attempts begin at 1
    temporary.mkdir()
    try:
        atomic_write(temporary / MANIFEST, manifest.to_json())
        place.before_commit()
        place.fence()
        (temporary / MANIFEST).rename(folder / MANIFEST)  # a later start would have removed it
        fsync(folder)
    finally:
        with suppress(OSError):
            remove(temporary, owner=place.owner)


def _wait_until(ready: Callable[[], bool], gave_up: Event) -> None:
    while not ready():
        if gave_up.wait(POLL_S):
            raise StaleDirectoryError("another rank failed")


def _write_own(folder: Path, place: SaveTarget, copied: StateSnapshot) -> None:
    name = rank_file(place.rank)
    file = _write_file(folder / f"{name}.safetensors", copied.content)
    done = {"file": vars(file), "ranges": copied.ranges, "streams": copied.streams}
    atomic_write(folder / f"{name}.done", json.dumps(done))


def _write_file(path: Path, content: memoryview) -> FileEntry:
    """Write in chunks, and wait for the disk. Raises OSError. Hashing and writing release the interpreter lock."""
    checksums = []
    with os.fdopen(_open_direct(path), "wb", buffering=0) as file:
        for start in range(0, len(content), CHUNK):
            chunk = content[start : start + CHUNK]
            checksums.append(checksum(chunk))
            while len(chunk):
                chunk = chunk[_write_some(file, chunk) :]
        os.fsync(file.fileno())
    return FileEntry(len(content), checksums)


def _open_direct(path: Path) -> int:
    """A new file, for writing past the page cache, where that is possible.

    Copying 1.3 GB into it was measured to take 0.4 to 3 s of a processor, against 0.05 s, all of it the loop's.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)


def _write_some(file: FileIO, chunk: memoryview) -> int:
    """Write what is not a multiple of the disk's blocks, such as the end of a file, by way of the page cache."""
    try:
        return file.write(chunk)
    except OSError as error:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & _DIRECT:
            raise
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~_DIRECT)
    return file.write(chunk)


def _write_manifest(folder: Path, copied: StateSnapshot, done: Mapping[str, dict[str, Any]]) -> None:
    files = {f"{name}.safetensors": entry for name, entry in done.items()}
    owned = [(*r, name) for name, entry in files.items() for r in entry["ranges"]]
    manifest = CheckpointManifest(
        step=copied.step,
        state=copied.state,
        layout=copied.layout,
        updates=copied.updates,
        parameters=dict(_parameters(copied.shapes, copied.kinds, owned)),
        memory=sorted((*e["streams"], name) for name, e in files.items() if len(range(*e["streams"]))),
        files={name: FileEntry(**entry["file"]) for name, entry in files.items()},
    )
    atomic_write(folder / MANIFEST, manifest.to_json())


def _parameters(
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, tuple[str, ...]],
    owned: list[tuple[str, str, int, int, str]],
) -> Iterator[tuple[str, ParameterEntry]]:
    """Each parameter's ranges; they must tile it, and be the same for all its kinds, or nothing is committed."""
    by_name: dict[str, dict[str, list[tuple[int, int, str]]]] = {
        name: {kind: [] for kind in of} for name, of in kinds.items()
    }
    for kind, name, start, stop, file in owned:
        by_name[name][kind].append((start, stop, file))
    for name, by_kind in by_name.items():
        ranges = sorted(by_kind["weight"])
        bounds = [0, *(stop for _, stop, _ in ranges)]
        size = 1
        for length in shapes[name]:
            size *= length
        assert [start for start, _, _ in ranges] == bounds[:-1], f"{name}: ranges with gaps or overlaps: {ranges}"
        assert bounds[-1] == size, f"{name}: ranges end at {bounds[-1]}, not at {size}"
        assert all(sorted(other) == ranges for other in by_kind.values()), f"{name}: ranges differ between kinds"
        yield name, ParameterEntry(list(shapes[name]), ranges, list(by_kind))


def _commit(folder: Path, place: SaveTarget, copied: StateSnapshot) -> None:
    """Make the folder a checkpoint by its name, and remove what is then too many.

    Should a later start of the run take over after the last look at the fence (this process may be stopped there for
    as long as you like), it has removed `folder` before it reads any checkpoint, and the rename finds nothing.
    """
    final = place.checkpoints / checkpoint_name(copied.step)
    place.fence()
    if final.exists():
        mine = CheckpointManifest.read(folder)
        try:
            if verify_whole(final).state == mine.state:
                return remove(folder, owner=place.owner)  # committed before, though it then looked as if it had failed
            place.fence()  # reading took its time: what is there may be a later start's by now
            set_aside(final)  # the run has gone back to it, and leaves out some data from there on
        except DamagedError as error:
            place.fence()
            quarantine(final, str(error))
    folder.rename(final)
    fsync(place.checkpoints)
    place.fence()
    prune(
        place.checkpoints,
        keep=place.keep,
        keep_every=place.keep_every,
        stay={place.verified, copied.state["best_step"] if place.keep_best else None},
        owner=place.owner,
    )


def save_weights_only(checkpoints: Path, model: PretrainingModel) -> None:
    """Commit the weights of a model as the checkpoint of step 0. One process; raises OSError."""
    parameters = dict(model.named_parameters())
    flat = {tensor_key("weight", name, 0): p.detach().float().flatten().contiguous() for name, p in parameters.items()}
    place = SaveTarget(
        checkpoints=checkpoints,
        rank=0,
        world_size=1,
        owner=0,
        fence=lambda: None,
        before_commit=lambda: None,
        keep=1,
        keep_every=None,
        keep_best=False,
        verified=None,
    )
    copied = StateSnapshot(
        step=0,
        attempt=0,
        content=memoryview(save(flat)),
        ranges=[("weight", name, 0, parameter.numel()) for name, parameter in parameters.items()],
        streams=(0, 0),
        state=vars(TrainState()),
        layout={"world_size": 1, "engine": "imported", "precision": "fp32", "torch": torch.__version__},
        updates=0,
        shapes={name: tuple(parameter.shape) for name, parameter in parameters.items()},
        kinds=dict.fromkeys(parameters, ("weight",)),
    )
    write_checkpoint(place, copied, Event())
