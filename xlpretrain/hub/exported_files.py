"""The files of an exported model, as recorded in its `config.json`. Overwriting an export removes no others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from xlpretrain.data.tokenizers.open import TOKENIZER_FILES

CONFIG = "config.json"
_SECTION, _FILES = "xlpretrain", "files"
_NAMES = (
    "README.md",
    "backbone_xlpretrain.py",
    "fused_xlpretrain.py",
    "heads_xlpretrain.py",
    "loss.png",
    "model.safetensors",
    "modeling_xlpretrain.py",
    "tokenizer_as_brought.json",
    "tokenizer_config.json",
    "visibility_xlpretrain.py",
    *TOKENIZER_FILES,
)
"""The files of an export, besides `config.json`."""


def write_config(folder: Path, described: dict[str, Any]) -> None:
    """Write the `config.json` of an export, with the checksums of all its files. Raises OSError."""
    checksums = {path.name: _sha256(path.read_bytes()) for path in sorted(folder.iterdir())}
    section = described[_SECTION] | {_FILES: checksums | {CONFIG: _sha256(_canonical(described))}}
    text = json.dumps(described | {_SECTION: section}, ensure_ascii=False, indent=1)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def claims(folder: Path) -> list[Path]:
    """The unchanged files of the export in `folder`; empty if there is no export.

    Exports by older versions have no checksums, so all known file names count. Raises OSError.
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
