"""The files that a build wrote, identified by their content. A later build removes no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.config import DataConfig
from data_pipelines.sharding.report import FILE, KEYS
from data_pipelines.stages.splits import SPLITS
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import DataError
from xlpretrain.schema import current_keys

INDEX = "index.json"
TOKENIZER_FOLDER = "tokenizer"


def claims(out: Path) -> list[Path]:
    """The files of the dataset in `out`, as relative paths; empty if no dataset was built there.

    An index claims its shards, and the tokenizer with the checksum that it records. All splits of a build have the
    same `built_from`, so other datasets in subfolders of `out` are not included. Raises OSError.
    """
    splits = dict(_splits(out))
    built_from = next((split.built_from for split in splits.values()), None)
    own = {folder: split for folder, split in splits.items() if split.built_from == built_from}
    files: dict[Path, None] = {}
    for folder, split in own.items():
        files |= {folder / shard.path.name: None for shard in split.shards}
        files |= {path.relative_to(out): None for path in _tokenizers(out / folder, split.tokenizer_sha256)}
    if own and _is_report(out / FILE):
        files[Path(FILE)] = None
    return [*files, *(folder / INDEX for folder in own)]


def _splits(out: Path) -> Iterator[tuple[Path, TokenDataset]]:
    """The splits that are in the folder they were built in, with their paths relative to `out`."""
    for path in sorted([*out.glob(f"*/{INDEX}"), *out.glob(f"*/*/{INDEX}")]):
        folder = path.parent.relative_to(out)
        try:
            split = TokenDataset.parse(path.parent)
        except DataError:
            continue  # a damaged index claims nothing
        settings = current_keys(DataConfig, split.built_from.get("settings") or {})
        sources = settings.get("sources") or [{}]
        if folder.name in SPLITS and str(folder.parent) in {source.get("subset") or "." for source in sources}:
            yield folder, split


def _tokenizers(folder: Path, sha256: str) -> list[Path]:
    beside = folder.parent / TOKENIZER_FOLDER
    files = [path for path in beside.iterdir() if path.is_file()] if beside.is_dir() else []
    return [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() == sha256]


def _is_report(path: Path) -> bool:
    try:
        return set(KEYS) <= set(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False
