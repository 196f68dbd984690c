"""Write a copied state to disk: each rank its own file, rank 0 the manifest and the commit by rename.

A rank's file is laid out in host memory exactly as on disk; training only waits for the copy into it. The rest runs on
a background thread, calls no collectives and touches no live tensors. Rank 0 learns from files (`rank-R.done`) that the
others are done; an event tells all ranks that another one failed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Any

import torch
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
    verify_whole,
)
from xlpretrain.checkpoint.train_state import best_step
from xlpretrain.errors import CheckpointError
from xlpretrain.file_system.atomic_files import atomic_write, fsync
from xlpretrain.machine.host_buffer import host_buffer

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Saved = Tensor | Sequence[Tensor]
"""A tensor to save, or the parts along dimension 1 of one that is not stored as one."""
Spec = tuple[str, torch.dtype, tuple[int, ...]]


class HostBuffer:
    """Host buffer for a file in the safetensors format, reused while the tensors keep their shapes.

    Format: 8 bytes with the length of a JSON header (key: dtype, shape, offsets), the header, and the concatenated
    tensors. The safetensors package is not used because it would read live tensors while it writes.
    """

    def __init__(self) -> None:
        self._specs: list[Spec] = []
        self._slots: list[Tensor] = []
        self._content = memoryview(b"")

    def copy(self, tensors: Mapping[str, Saved]) -> memoryview:
        """Copy the tensors (larger dtypes first) and return the file's bytes. Synchronizes on CUDA."""
        specs = [(key, dtype_of(tensor), _shape(tensor)) for key, tensor in tensors.items()]
        on_cuda = any(part.is_cuda for tensor in tensors.values() for part in _parts(tensor))
        if specs != self._specs:
            self._lay_out(specs, pinned=on_cuda)
        for slot, tensor in zip(self._slots, tensors.values(), strict=True):
            if isinstance(tensor, Tensor):
                slot.copy_(tensor.detach(), non_blocking=True)
            else:
                _copy_parts(slot, tensor)
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
        self._slots, self._content = [], memoryview(b"")  # free the old buffer first
        buffer = host_buffer(start + end, pinned=pinned)  # aligned for O_DIRECT
        self._content = buffer.numpy().data
        self._content[:start] = len(text).to_bytes(8, "little") + text
        pieces = torch.split(buffer[start:], sizes)
        self._slots = [piece.view(dtype).view(shape) for piece, (_, dtype, shape) in zip(pieces, specs, strict=True)]
        self._specs = specs


def dtype_of(tensor: Saved) -> torch.dtype:
    """The data type of a tensor to save."""
    return _parts(tensor)[0].dtype


def _parts(tensor: Saved) -> Sequence[Tensor]:
    return [tensor] if isinstance(tensor, Tensor) else tensor


def _shape(tensor: Saved) -> tuple[int, ...]:
    if isinstance(tensor, Tensor):
        return tuple(tensor.shape)
    first, _, *rest = tensor[0].shape
    return (first, sum(part.shape[1] for part in tensor), *rest)


def _copy_parts(slot: Tensor, parts: Sequence[Tensor]) -> None:
    """Copy parts along dimension 1, row by row: both sides of each copy are contiguous, so no other copy is made."""
    for place, part in zip(torch.split(slot, [part.shape[1] for part in parts], dim=1), parts, strict=True):
        for own, row in zip(place, part.detach(), strict=True):
            own.copy_(row, non_blocking=True)


POLL_S = 0.02
_DIRECT = getattr(os, "O_DIRECT", 0)


class StaleDirectoryError(CheckpointError):
    """The folder was removed, because another rank failed or another attempt took over."""


@dataclass(frozen=True)
class SaveTarget:
    """Folder for checkpoints, its owner, and which checkpoints to keep.

    owner: number of this attempt; a later attempt has a higher number, and removes what earlier ones were writing.
    fence: raises if there is a later attempt; called by rank 0. before_commit: writes what must be on disk first.
    keep_best: True to keep the checkpoint of the state's best step.
    verified: step of the checkpoint that this attempt resumed from; always kept, since only it is known to be intact.
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
    """Copy of a state, taken by the training loop.

    attempt: number of this save within the attempt of the run. content: bytes of this rank's file. ranges: its (kind,
    name, start, stop); streams: [first, stop) of each of its memories. The rest is for the manifest, equal on every
    rank.
    """

    step: int
    attempt: int
    content: memoryview
    ranges: list[tuple[str, str, int, int]]
    streams: Sequence[tuple[int, int]]
    state: dict[str, Any]
    layout: dict[str, Any]
    updates: int
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, tuple[str, ...]]
    stream_states: Sequence[str] = ()


def write_checkpoint(place: SaveTarget, copied: StateSnapshot, gave_up: Event) -> None:
    """Write this rank's part of a save. Every rank must call it.

    Raises:
        OSError, CheckpointError: this rank's part failed; the folder is removed, older checkpoints are unchanged.
        XLPretrainError: raised by the fence; this attempt is over.
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
        clear_temporary(place.checkpoints, owner=place.owner)  # leftovers of failed saves
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
        place.fence()  # if the folder is gone because another attempt took over, report that
        raise


def amend(place: SaveTarget, step: int, state: dict[str, Any]) -> None:
    """Replace the state in the checkpoint of a step, after its evaluation. Only rank 0 calls it.

    Raises:
        OSError, DamagedError: the checkpoint is unchanged.
        XLPretrainError: raised by the fence; this attempt is over.
    """
    folder = place.checkpoints / checkpoint_name(step)
    manifest = replace(CheckpointManifest.read(folder), state=state)
    temporary = place.checkpoints / temporary_name(place.owner, step, 0)  # saves are numbered from 1
    temporary.mkdir()
    try:
        atomic_write(temporary / MANIFEST, manifest.to_json())
        place.before_commit()
        place.fence()
        (temporary / MANIFEST).rename(folder / MANIFEST)  # fails if a later attempt has removed it
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
    """Write in chunks and fsync. Raises OSError. Hashing and writing release the GIL."""
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
    """Create a file for direct I/O, bypassing the page cache, where possible.

    Measured for 1.3 GB: through the page cache 0.4 to 3 s of CPU time, taken from the loop; directly 0.05 s.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)


def _write_some(file: FileIO, chunk: memoryview) -> int:
    """Write a chunk; the unaligned end of a file goes through the page cache."""
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
        memory=sorted((*streams, name) for name, entry in files.items() for streams in entry["streams"]),
        files={name: FileEntry(**entry["file"]) for name, entry in files.items()},
        stream_states=list(copied.stream_states),
    )
    atomic_write(folder / MANIFEST, manifest.to_json())


def _parameters(
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, tuple[str, ...]],
    owned: list[tuple[str, str, int, int, str]],
) -> Iterator[tuple[str, ParameterEntry]]:
    """Ranges of each parameter. Asserts that they tile it and are equal for all of its kinds; else nothing is
    committed."""
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
    """Commit the folder by renaming it, and prune old checkpoints.

    If a later attempt takes over after the last fence check (this process may be suspended there), it removes `folder`
    before it reads any checkpoint, and the rename fails.
    """
    final = place.checkpoints / checkpoint_name(copied.step)
    place.fence()
    if final.exists():
        mine = CheckpointManifest.read(folder)
        try:
            if verify_whole(final).state == mine.state:
                return remove(folder, owner=place.owner)  # the earlier commit succeeded, although it reported an error
            place.fence()  # again, since reading took time: a later attempt may have written it
            set_aside(final)  # the run rolled back, and skips some data from there on
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
        stay={place.verified, best_step(copied.state) if place.keep_best else None},
        owner=place.owner,
    )
