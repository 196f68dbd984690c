"""The report of a build: documents read and kept, effects of cleaning, and warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xlpretrain.errors import DataError
from xlpretrain.file_system.atomic_files import atomic_write

FILE = "report.json"
KEYS = ("documents_read", "documents_kept", "cleaned")
"""Keys of every report."""


def write_report(
    folder: Path,
    *,
    num_read: int,
    num_kept: int,
    cleaned: Mapping[str, int],
    trained_on: Mapping[str, int],
    warnings: Sequence[str],
) -> None:
    """Write the report. trained_on: counts of the tokenizer's training, empty if not trained. Raises OSError."""
    whole: dict[str, Any] = {"documents_read": num_read, "documents_kept": num_kept}
    whole["cleaned"] = dict(sorted(cleaned.items()))
    if trained_on:
        whole["tokenizer_trained_on"] = dict(sorted(trained_on.items()))
    if warnings:
        whole["warnings"] = list(warnings)
    atomic_write(folder / FILE, json.dumps(whole, indent=2) + "\n")


def read_report(out: Path) -> dict[str, Any]:
    """The report of a finished dataset; empty if it has none. Raises `DataError` if it is damaged."""
    try:
        return dict(json.loads((out / FILE).read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{out / FILE}: cannot be read: {error}") from None


def print_report(console: Console, out: Path, report: Mapping[str, Any]) -> None:
    """Print the effects of cleaning, if any, and the warnings."""
    if table := report_table(out, report):
        console.print(table)
    for warning in report.get("warnings", []):
        console.print(f"warning: {warning}", highlight=False, markup=False, style="yellow")


def report_table(out: Path, report: Mapping[str, Any]) -> Table | None:
    """The report as a table, or None if cleaning changed nothing."""
    if not any(report.get("cleaned", {}).values()):
        return None
    table = Table(title=f"{out}: cleaning", title_justify="left")
    table.add_column()
    table.add_column("documents", justify="right")
    rows = {"read": report["documents_read"], **report["cleaned"], "kept": report["documents_kept"]}
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    return table
