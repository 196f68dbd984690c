"""The files of an exported model, told by its `config.json`: a later export over it removes no others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CONFIG = "config.json"
_SECTION, _FILES = "xlpretrain", "files"
_NAMES = (
    "README.md",
    "loss.png",
    "model.safetensors",
    "modeling_xlpretrain.py",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocabulary.json",
)
"""The files of an export, besides `config.json`."""


def write_config(folder: Path, described: dict[str, Any]) -> None:
    """Complete an export: its `config.json`, which also has the checksum of every file. Raises OSError."""
    checksums = {path.name: _sha256(path.read_bytes()) for path in sorted(folder.iterdir())}
    section = described[_SECTION] | {_FILES: checksums | {CONFIG: _sha256(_canonical(described))}}
    text = json.dumps(described | {_SECTION: section}, ensure_ascii=False, indent=1)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def claims(folder: Path) -> list[Path]:
    """The files in `folder` that an export wrote and that are as it wrote them; none if no export lies there.

    Exports of older versions have no checksums: there the names decide. Raises OSError.
    """
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        checksums = described[_SECTION].pop(_FILES, None)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return []
    if checksums is None:
        return [*map(Path, _NAMES), Path(CONFIG)]
    own = [name for name in _NAMES if (folder / name).is_file() and _is(folder / name, checksums.get(name))]
    return [*map(Path, own), *([Path(CONFIG)] if _sha256(_canonical(described)) == checksums.get(CONFIG) else [])]


def _is(path: Path, checksum: str | None) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == checksum


def _canonical(described: dict[str, Any]) -> bytes:
    return json.dumps(described, sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
