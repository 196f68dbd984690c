"""Build datasets for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.build.pipeline import build
from data_pipelines.config import DataConfig
from xlpretrain.schema import validate

VOCAB_SIZE = 300


BuildSmall = Callable[..., Path]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    """Write one {"text": ...} object per line."""
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
    return path


def build_dataset(out: Path, *, force: bool = False, **settings: Any) -> Path:
    """Build a dataset under `out`, silently and in this process (unless `settings` set workers)."""
    config = validate(DataConfig, {"workers": 1, **settings, "out": str(out)}, "test")
    return build(config, force=force, console=Console(file=io.StringIO())).out
