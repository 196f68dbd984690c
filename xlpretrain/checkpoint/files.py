"""Checkpoint folders and files: names, manifest, checksums of 16 MiB chunks, moving folders. Torch-free.

Only rank 0 may move or remove a folder. A folder is renamed before it is removed, so that readers never see a partial
checkpoint and an older owner can no longer commit the one it was writing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from xlpretrain.errors import CheckpointError
from xlpretrain.file_system import atomic_dirs
from xlpretrain.file_system.atomic_files import is_temporary

TEMPORARY = ".tmp-"
DAMAGED = "damaged"
ABANDONED = "abandoned"
KEPT = "kept"
"""Folder for foreign files found in removed checkpoints."""

_NAME = re.compile(r"step-(\d{8,})")
_OWNED = re.compile(r"\.tmp-(\d+)-(?:old-|\d+-)*(step-\d{8,})(?:-\d+)*")
_FILE = re.compile(r"manifest\.json|rank-\d{5,}\.(?:safetensors|done)")


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def temporary_name(owner: int, step: int, attempt: int) -> str:
    """Folder name while attempt number `owner` of the run writes it; `attempt` numbers the saves."""
    return f"{TEMPORARY}{owner}-{checkpoint_name(step)}-{attempt}"


def parse_step(folder: Path) -> int | None:
    """Step in a checkpoint's folder name; None for other folders."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Folders of committed checkpoints, newest first."""
    found = [(step, path) for path in _children(checkpoints) if (step := parse_step(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def list_quarantined(checkpoints: Path, kind: str) -> list[Path]:
    """Checkpoints in `damaged/` or `abandoned/`, by name."""
    return sorted(_children(checkpoints / kind))


def clear_temporary(checkpoints: Path, *, owner: int) -> None:
    """Remove what this or an earlier attempt was writing or removing when it ended. Raises OSError.

    An older owner that is still alive cannot commit anything afterwards.
    """
    for path in _children(checkpoints):
        match = _OWNED.fullmatch(path.name)
        if match and int(match[1]) <= owner:
            remove(path, owner=owner)


def remove(folder: Path, *, owner: int) -> None:
    """Remove a folder if it exists. Files that no save wrote move to `kept/`. Raises OSError."""
    try:
        going = _move(folder, folder.parent / f"{TEMPORARY}{owner}-old-{folder.name.removeprefix(TEMPORARY)}")
    except FileNotFoundError:
        return  # its writer has committed or removed it
    ours = [] if going.is_symlink() else [p for p in atomic_dirs.unclaimed(going, ()) if _is_of_checkpoint(p)]
    if not atomic_dirs.remove(going, ours):
        match = _OWNED.fullmatch(going.name)
        _move(going, folder.parent / KEPT / (match[2] if match else folder.name))


def prune(checkpoints: Path, *, keep: int, keep_every: int | None, stay: Set[int | None], owner: int) -> None:
    """Remove all checkpoints but the newest `keep`, multiples of `keep_every` and steps in `stay`. Raises OSError."""
    for old in list_checkpoints(checkpoints)[keep:]:
        step = parse_step(old) or 0
        if step not in stay and (keep_every is None or step % keep_every):
            remove(old, owner=owner)


def quarantine(folder: Path, reason: str) -> None:
    """Move a damaged checkpoint to `damaged/`, with the reason in its name. Raises OSError."""
    suffix = re.sub(r"[^a-zA-Z0-9.]+", "-", reason)[:80].strip("-")
    _move(folder, folder.parent / DAMAGED / f"{folder.name}-{suffix}")


def set_aside_newer(checkpoints: Path, step: int) -> list[Path]:
    """Move every checkpoint of a later step to `abandoned/`, newest first; returns the new paths. Raises OSError.

    Used to roll back to `step`, so that later steps can be saved again. No save may be in flight.
    """
    return [set_aside(path) for path in list_checkpoints(checkpoints) if (parse_step(path) or 0) > step]


def set_aside(folder: Path) -> Path:
    """Move a checkpoint to `abandoned/`; returns the new path. Raises OSError."""
    return _move(folder, folder.parent / ABANDONED / folder.name)


def _move(folder: Path, wanted: Path) -> Path:
    """Rename to `wanted`, or to the first free name of `wanted-2`, `wanted-3`, ..."""
    wanted.parent.mkdir(exist_ok=True)
    free: Iterator[Path] = (wanted if n == 1 else wanted.with_name(f"{wanted.name}-{n}") for n in itertools.count(1))
    return folder.rename(next(path for path in free if not path.exists()))


def _is_of_checkpoint(path: Path) -> bool:
    return len(path.parts) == 1 and (_FILE.fullmatch(path.name) is not None or is_temporary(path))


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


CHUNK = 16 * 2**20
SCHEMA = 3
"""Version of manifests. Version 2, which can be read too, has one list of kinds for all parameters."""
MANIFEST = "manifest.json"


class DamagedError(Exception):
    """A damaged checkpoint. The message is a short reason."""


@dataclass(frozen=True)
class FileEntry:
    """A rank's file: its size in bytes, and the checksum of each chunk."""

    size: int
    chunks: list[str]


@dataclass(frozen=True)
class ParameterEntry:
    """A parameter's shape, the kinds of state kept for it (`weight`, and its optimizer's), and ranges [start, stop,
    file] in order; they tile it, for each of its kinds."""

    shape: list[int]
    ranges: list[tuple[int, int, str]]
    kinds: list[str]


@dataclass(frozen=True)
class CheckpointManifest:
    """Everything in a checkpoint except its tensors.

    state: the run's `TrainState`. layout: what made it, for telling whether going on is bit-identical.
    updates: number of updates of the optimizer.
    memory: ranges of streams [first, stop, file] in order.
    stream_states: names of the callbacks whose state of these streams is in the same files.
    """

    step: int
    state: dict[str, Any]
    layout: dict[str, Any]
    updates: int
    parameters: dict[str, ParameterEntry]
    memory: list[tuple[int, int, str]]
    files: dict[str, FileEntry]
    stream_states: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Serialize with a checksum over the content, one line per field; changed or missing bytes are detected.

        Avoids `asdict` and indentation, which are slow and would block the training loop.
        """
        content = {"schema": SCHEMA, **vars(self)}
        content["parameters"] = {name: vars(parameter) for name, parameter in self.parameters.items()}
        content["files"] = {name: vars(file) for name, file in self.files.items()}
        content["sha256"] = _checksum(content)
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()) + "\n}"

    @classmethod
    def read(cls, folder: Path) -> CheckpointManifest:
        """Read the manifest of a checkpoint.

        Raises:
            DamagedError: it is not as it was written.
            CheckpointError: a later version of xlpretrain wrote it. That is no damage; the checkpoint stays in place.
        """
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            written = content.pop("sha256")
        except FileNotFoundError:
            raise DamagedError("no manifest") from None
        except (OSError, ValueError, KeyError, AttributeError):
            raise DamagedError("manifest unreadable") from None
        if written != _checksum(content):
            raise DamagedError("manifest checksum")
        if (schema := content.pop("schema")) > SCHEMA:
            raise CheckpointError(
                f"{folder}: was written by a later version of xlpretrain (schema {schema}; this version reads up to"
                f" {SCHEMA}); use that version, or a later one"
            )
        if schema < SCHEMA:
            _migrate_2(content)
        if parse_step(folder) not in (None, content["step"]):
            raise DamagedError(f"manifest of step {content['step']}")
        parameters = {name: ParameterEntry(**p) for name, p in content.pop("parameters").items()}
        files = {name: FileEntry(**f) for name, f in content.pop("files").items()}
        return cls(**content, parameters=parameters, files=files)


def tensor_key(kind: str, name: str, start: int) -> str:
    """Key of a parameter's range in a rank's file."""
    return f"{kind}|{name}|{start}"


def memory_key(first_stream: int) -> str:
    """Key of the streams' memory in a rank's file."""
    return f"memory|{first_stream}"


def stream_state_key(name: str, first_stream: int) -> str:
    """The key in a rank's file of a callback's state of its streams."""
    return f"stream|{name}|{first_stream}"


def rank_file(rank: int) -> str:
    """Name of a rank's file, without extension."""
    return f"rank-{rank:05d}"


def checksum(chunk: bytes | memoryview) -> str:
    """128-bit XXH3: detects damage, not manipulation. SHA-256 would block the loop 16 times as long."""
    return xxhash.xxh3_128_hexdigest(chunk)


def chunk_checksums(path: Path, which: Iterable[int] | None = None) -> Iterator[str]:
    """Compute the checksums of all chunks of a file, or of `which`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for index in range(-(-size // CHUNK)) if which is None else which:
            file.seek(index * CHUNK)
            yield checksum(file.read(CHUNK))


def open_manifest(folder: Path) -> CheckpointManifest:
    """Read the manifest, and check that all files exist with the right size.

    Raises `DamagedError`, OSError, and `CheckpointError` for a checkpoint of a later version.
    """
    manifest = CheckpointManifest.read(folder)
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} missing")
        if path.stat().st_size != file.size:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes, not {file.size}")
    return manifest


def verify_whole(folder: Path) -> CheckpointManifest:
    """Read the manifest, and verify every byte of the checkpoint. Raises `DamagedError`."""
    try:
        manifest = open_manifest(folder)
        for name in manifest.files:
            verify_chunks(folder, name, manifest)
    except OSError as error:
        raise DamagedError(str(error)) from None
    return manifest


def verify_chunks(folder: Path, name: str, manifest: CheckpointManifest, which: Iterable[int] | None = None) -> None:
    """Verify all chunks of a file, or `which`, against the manifest. Raises `DamagedError`, OSError."""
    expected = manifest.files[name].chunks
    which = range(len(expected)) if which is None else list(which)
    for index, found in zip(which, chunk_checksums(folder / name, which), strict=True):
        if found != expected[index]:
            raise DamagedError(f"{name} checksum of chunk {index}")


def _migrate_2(content: dict[str, Any]) -> None:
    """Give each parameter the kinds that schema 2 names once for all of them."""
    kinds = content.pop("kinds")
    for parameter in content["parameters"].values():
        parameter["kinds"] = kinds


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
