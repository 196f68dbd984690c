"""The format on disk: files and their keys, the manifest, and checksums over chunks of 16 MiB. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from xlpretrain.checkpoint.folders import step_of

CHUNK = 16 * 2**20
SCHEMA = 2
MANIFEST = "manifest.json"


class DamagedError(Exception):
    """A checkpoint is not what was written. The message is the reason, in a few words."""


@dataclass(frozen=True)
class File:
    """A rank's file: its size, and the checksum of each chunk."""

    size: int
    chunks: list[str]


@dataclass(frozen=True)
class Parameter:
    """A parameter's shape, and its ranges [start, stop, file] in order; they tile it, for every kind."""

    shape: list[int]
    ranges: list[tuple[int, int, str]]


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint but its tensors.

    state: the run's `TrainState`. layout: what made it, for telling whether going on is bit-identical.
    updates: the optimizer's step count. kinds: of the tensors kept per parameter.
    memory: ranges of streams [first, stop, file] in order.
    """

    step: int
    state: dict[str, Any]
    layout: dict[str, Any]
    updates: int
    kinds: list[str]
    parameters: dict[str, Parameter]
    memory: list[tuple[int, int, str]]
    files: dict[str, File]

    def to_json(self) -> str:
        """The manifest with a checksum over itself, a line per field; no byte of it may change or be missing.

        Not `asdict`, nor an indent: both are slow, and what they hold up is the training loop.
        """
        content = {"schema": SCHEMA, **vars(self)}
        content["parameters"] = {name: vars(parameter) for name, parameter in self.parameters.items()}
        content["files"] = {name: vars(file) for name, file in self.files.items()}
        content["sha256"] = _checksum(content)
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()) + "\n}"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a checkpoint's folder. Raises `DamagedError`."""
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            written = content.pop("sha256")
        except FileNotFoundError:
            raise DamagedError("no manifest") from None
        except (OSError, ValueError, KeyError, AttributeError):
            raise DamagedError("manifest unreadable") from None
        if written != _checksum(content):
            raise DamagedError("manifest checksum")
        if (schema := content.pop("schema")) != SCHEMA:
            raise DamagedError(f"manifest of schema {schema}, not {SCHEMA}")
        if step_of(folder) not in (None, content["step"]):
            raise DamagedError(f"manifest of step {content['step']}")
        parameters = {name: Parameter(**p) for name, p in content.pop("parameters").items()}
        files = {name: File(**f) for name, f in content.pop("files").items()}
        return cls(**content, parameters=parameters, files=files)


def tensor_key(kind: str, name: str, start: int) -> str:
    """The key in a rank's file of a range of a parameter."""
    return f"{kind}|{name}|{start}"


def memory_key(first_stream: int) -> str:
    """The key in a rank's file of its streams' memories."""
    return f"memory|{first_stream}"


def rank_file(rank: int) -> str:
    """The name of a rank's file, without its extension."""
    return f"rank-{rank:05d}"


def checksum(chunk: bytes | memoryview) -> str:
    """128 bits of XXH3: against damage, not against people. SHA-256 takes 16 times as long, all of it the loop's."""
    return xxhash.xxh3_128_hexdigest(chunk)


def chunk_checksums(path: Path, which: Iterable[int] | None = None) -> Iterator[str]:
    """The checksums of the chunks of a file, of all of them or of `which`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for index in range(-(-size // CHUNK)) if which is None else which:
            file.seek(index * CHUNK)
            yield checksum(file.read(CHUNK))


def open_manifest(folder: Path) -> Manifest:
    """A checkpoint's manifest, once its files are there and as long as it says. Raises `DamagedError`, OSError."""
    manifest = Manifest.read(folder)
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} missing")
        if path.stat().st_size != file.size:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes, not {file.size}")
    return manifest


def verify_whole(folder: Path) -> Manifest:
    """A checkpoint's manifest, once every byte was read and is as it was written. Raises `DamagedError`."""
    try:
        manifest = open_manifest(folder)
        for name in manifest.files:
            verify_chunks(folder, name, manifest)
    except OSError as error:
        raise DamagedError(str(error)) from None
    return manifest


def verify_chunks(folder: Path, name: str, manifest: Manifest, which: Iterable[int] | None = None) -> None:
    """Compare chunks of a file, all of them or `which`, with its manifest. Raises `DamagedError`, OSError."""
    expected = manifest.files[name].chunks
    which = range(len(expected)) if which is None else list(which)
    for index, found in zip(which, chunk_checksums(folder / name, which), strict=True):
        if found != expected[index]:
            raise DamagedError(f"{name} checksum of chunk {index}")


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
