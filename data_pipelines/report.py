"""The report of a build: how many documents came in, what became of them and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_pipelines import encoding, reading
from data_pipelines.splits import groups
from data_pipelines.work import Work
from xlpretrain.durable import replace_file
from xlpretrain.errors import DataError

FILE = "report.json"


def write(work: Work) -> None:
    """Into the dataset that grows. Raises OSError."""
    read, encoded = work.counts(reading.NAME), work.counts(encoding.NAME)
    own = {"read", "bytes", "kept", *(f"in {group.folder}" for group in groups(work.config))}
    cleaned = {
        name: count
        for name, count in sorted({**read, **encoded}.items())
        if name not in own and not name.startswith(("tokens in ", "unknown in "))
    }
    whole = {"documents_read": read["read"], "documents_kept": encoded["kept"], "cleaned": cleaned}
    replace_file(work.dataset / FILE, json.dumps(whole, indent=2) + "\n")


def read(out: Path) -> dict[str, Any]:
    """That of a finished dataset; empty if it has none. Raises `DataError` if it is damaged."""
    try:
        return dict(json.loads((out / FILE).read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{out / FILE}: cannot be read: {error}") from None


def show(out: Path, console: Console) -> None:
    """Print it, if it has anything to say."""
    found = read(out)
    if not any(found.get("cleaned", {}).values()):
        return
    table = Table(title=f"{out}: cleaning", title_justify="left")
    table.add_column()
    table.add_column("documents", justify="right")
    table.add_row("read", f"{found['documents_read']:,}")
    for name, count in found["cleaned"].items():
        table.add_row(name, f"{count:,}")
    table.add_row("kept", f"{found['documents_kept']:,}")
    console.print(table)
