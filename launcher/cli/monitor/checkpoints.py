"""The table printed by `xlpretrain checkpoints`: a run's checkpoints, and which are damaged. Torch-free."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from launcher.units import format_bytes
from xlpretrain.checkpoint.files import (
    ABANDONED,
    DAMAGED,
    MANIFEST,
    CheckpointManifest,
    DamagedError,
    list_checkpoints,
    list_quarantined,
    open_manifest,
    verify_whole,
)
from xlpretrain.errors import CheckpointError
from xlpretrain.tracking.console import format_duration


@dataclass(frozen=True)
class CheckpointRow:
    """One row of the table, formatted."""

    name: str
    age: str
    size: str
    made_with: str
    state: str


def show(checkpoints: Path, *, verify: bool) -> bool:
    """Print one line per checkpoint, newest first. Returns False if a checkpoint that could be resumed is damaged.

    verify: check every byte (abandoned checkpoints too), instead of only comparing file sizes with the manifest.
    """
    if not list_checkpoints(checkpoints):
        print(f"{checkpoints}: no checkpoints")
    check, sound = (verify_whole, "intact") if verify else (open_manifest, "")
    all_whole = True
    rows = [CheckpointRow("checkpoint", "age", "size", "made with", "state")]
    for kind, folders in (
        ("", list_checkpoints(checkpoints)),
        (ABANDONED, list_quarantined(checkpoints, ABANDONED)),
        (DAMAGED, list_quarantined(checkpoints, DAMAGED)),
    ):
        for folder in folders:
            state = kind
            if kind != DAMAGED:
                try:
                    check(folder)
                    state = ", ".join(filter(None, [kind, sound]))
                except (DamagedError, OSError) as error:
                    all_whole = False
                    state = f"damaged: {error}"
                except CheckpointError as error:
                    all_whole = False
                    state = str(error)
            rows.append(_row(folder, folder.relative_to(checkpoints), state))
    if len(rows) > 1:
        widths = [max(len(getattr(row, name)) for row in rows) for name in ("name", "age", "size", "made_with")]
        for row in rows:
            cells = zip((row.name, row.age, row.size, row.made_with), widths, strict=True)
            print("  ".join([*(cell.ljust(width) for cell, width in cells), row.state]).rstrip())
    return all_whole


def _row(folder: Path, name: Path, state: str) -> CheckpointRow:
    files = [path.stat() for path in folder.iterdir() if path.is_file()]
    size = format_bytes(sum(file.st_size for file in files))
    try:
        made = CheckpointManifest.read(folder).layout
        age = format_duration(time.time() - (folder / MANIFEST).stat().st_mtime)
    except (DamagedError, CheckpointError, OSError):
        return CheckpointRow(str(name), "?", size, "?", state)
    engine = f"ZeRO {made['zero_stage']}" if "zero_stage" in made else str(made["engine"])
    ranks = "1 rank" if made["world_size"] == 1 else f"{made['world_size']} ranks"
    return CheckpointRow(str(name), age, size, f"{ranks}, {engine}, {made['precision']}", state)
