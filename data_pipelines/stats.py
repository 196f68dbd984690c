"""`xlpretrain data stats`: what a dataset holds, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from xlpretrain.data.manifest import Manifest
from xlpretrain.errors import DataError

QUANTILES = {"shortest": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "longest": 1.0}


def stats(folder: Path, *, console: Console | None = None) -> None:
    """Print what the dataset in `folder` holds: one split, or every split below it. Raises `DataError`."""
    manifests = {_name(path, folder): Manifest.open(path) for path in dataset_folders(folder)}
    table = summary_table(str(folder), manifests)
    table.add_section()
    lengths = {name: np.quantile(document_lengths(m), list(QUANTILES.values())) for name, m in manifests.items()}
    for i, quantile in enumerate(QUANTILES):
        table.add_row(f"tokens in a document: {quantile}", *(f"{values[i]:,.0f}" for values in lengths.values()))
    (console or Console()).print(table)


def dataset_folders(folder: Path) -> list[Path]:
    """`folder` itself if it is a dataset, else those in it. Raises `DataError` if there are none."""
    if (folder / "index.json").is_file():
        return [folder]
    indexes = [*folder.glob("*/index.json"), *folder.glob("*/*/index.json")]
    found = sorted(index.parent for index in indexes if not index.parent.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: no dataset here (no index.json); build it with `xlpretrain data build`")
    return found


def _name(path: Path, folder: Path) -> str:
    return path.name if path == folder else str(path.relative_to(folder))


def document_lengths(manifest: Manifest) -> np.ndarray:
    """Tokens in each document, in the order of the dataset. Reads, and so verifies, every block."""
    return np.diff(manifest.document_ends(0, manifest.num_tokens), prepend=-1)


def summary_table(title: str, manifests: Mapping[str, Manifest]) -> Table:
    """One column a split; from the indexes alone."""
    rows: dict[str, Callable[[Manifest], str]] = {
        "documents": lambda m: f"{m.num_documents:,}",
        "sentences": lambda m: f"{m.num_sentences:,}",
        "tokens": lambda m: f"{m.num_tokens:,}",
        "bytes of text": lambda m: f"{m.num_bytes:,}",
        "bytes per token": lambda m: f"{m.num_bytes / m.num_tokens:.2f}",
        "unknown tokens": lambda m: f"{m.num_unknown / m.num_tokens:.3%}",
        "vocabulary": lambda m: f"{m.vocabulary.size:,}",
        "tokens in a block": lambda m: f"{m.block_tokens:,}",
        "blocks": lambda m: f"{m.num_blocks:,}" + (f" and {m.tail_tokens:,} tokens" if m.tail_tokens else ""),
        "shards": lambda m: f"{len(m.shards):,}",
    }
    table = Table(title=title, title_justify="left")
    table.add_column()
    for name in manifests:
        table.add_column(name, justify="right")
    for row, show in rows.items():
        table.add_row(row, *(show(m) for m in manifests.values()))
    return table
