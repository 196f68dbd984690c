"""The format on disk: names, the manifest, and checksums over chunks of 16 MiB."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHUNK = 16 * 2**20
SCHEMA = 1
MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
DAMAGED = "damaged"

_NAME = re.compile(r"step-(\d{8,})")


class DamagedError(Exception):
    """A checkpoint is not what was written. The message is the reason, in a few words."""


@dataclass(frozen=True)
class File:
    """A rank's file: its size, and the SHA-256 of each chunk."""

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
        """The manifest with a checksum over itself."""
        content = {"schema": SCHEMA, **asdict(self)}
        return json.dumps({**content, "sha256": _checksum(content)}, indent=1)

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


def checkpoint_name(step: int) -> str:
    """The name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """The folders of finished checkpoints, newest first."""
    found = [(int(match[1]), path) for path in _children(checkpoints) if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def list_temporary(checkpoints: Path) -> list[Path]:
    """What was being written or removed when something ended."""
    return [path for path in _children(checkpoints) if path.name.startswith(TEMPORARY)]


def chunk_checksums(path: Path, which: Iterable[int] | None = None) -> Iterator[str]:
    """SHA-256 of the chunks of a file, of all of them or of `which`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for index in range(-(-size // CHUNK)) if which is None else which:
            file.seek(index * CHUNK)
            yield hashlib.sha256(file.read(CHUNK)).hexdigest()


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
