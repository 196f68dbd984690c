"""The command `xlpretrain checkpoints`: what a run has saved, and whether it is whole."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Row:
    """The columns of a checkpoint in the table."""

    name: str
    age: str
    size: str
    made_with: str
    state: str


def show(checkpoints: Path, *, verify: bool) -> bool:
    """Print a line for each checkpoint, newest first. Returns whether all that a run may go on from are whole.

    verify: read them whole (abandoned ones too), instead of only comparing their files' lengths with the manifest.
    """
    if not list_checkpoints(checkpoints):
        print(f"{checkpoints}: no checkpoints")
    check, sound = (verify_whole, "whole") if verify else (open_manifest, "")
    all_whole = True
    rows = [Row("checkpoint", "age", "size", "made with", "state")]
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
            rows.append(_row(folder, folder.relative_to(checkpoints), state))
    if len(rows) > 1:
        widths = [max(len(getattr(row, name)) for row in rows) for name in ("name", "age", "size", "made_with")]
        for row in rows:
            cells = zip((row.name, row.age, row.size, row.made_with), widths, strict=True)
            print("  ".join([*(cell.ljust(width) for cell, width in cells), row.state]).rstrip())
    return all_whole


def _row(folder: Path, name: Path, state: str) -> Row:
    files = [path.stat() for path in folder.iterdir() if path.is_file()]
    size = _size(sum(file.st_size for file in files))
    try:
        made = CheckpointManifest.read(folder).layout
        age = _age(time.time() - (folder / MANIFEST).stat().st_mtime)
    except (DamagedError, OSError):
        return Row(str(name), "?", size, "?", state)
    engine = f"ZeRO {made['zero_stage']}" if "zero_stage" in made else str(made["engine"])
    processes = "1 process" if made["world_size"] == 1 else f"{made['world_size']} processes"
    return Row(str(name), age, size, f"{processes}, {engine}, {made['precision']}", state)


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"


def _age(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
