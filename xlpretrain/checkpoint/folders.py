"""The folders under `checkpoints/`: their names, and moving them out of the way. Torch-free.

Whatever moves or removes one is for rank 0 alone. A folder that goes loses its name first, by one rename: what reads
never sees a part of a checkpoint, and what an older owner was still writing cannot be committed any more.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Set
from pathlib import Path

from xlpretrain import folders
from xlpretrain.durable import is_temporary

TEMPORARY = ".tmp-"
DAMAGED = "damaged"
ABANDONED = "abandoned"
KEPT = "kept"
"""For what lay in a checkpoint that was removed, and was not of it."""

_NAME = re.compile(r"step-(\d{8,})")
_OWNED = re.compile(r"\.tmp-(\d+)-(?:old-|\d+-)*(step-\d{8,})(?:-\d+)*")
_FILE = re.compile(r"manifest\.json|rank-\d{5,}\.(?:safetensors|done)")


def checkpoint_name(step: int) -> str:
    """The name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def temporary_name(owner: int, step: int, attempt: int) -> str:
    """Its name while start number `owner` of the run writes it; each of its saves has a number of its own."""
    return f"{TEMPORARY}{owner}-{checkpoint_name(step)}-{attempt}"


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint's name; None if it has another name."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """The folders of finished checkpoints, newest first."""
    found = [(step, path) for path in _children(checkpoints) if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def list_put_away(checkpoints: Path, kind: str) -> list[Path]:
    """What lies in `damaged/` or `abandoned/`, by name."""
    return sorted(_children(checkpoints / kind))


def clear_temporary(checkpoints: Path, *, owner: int) -> None:
    """Remove what this start of the run, or one before it, was writing or removing when it ended. Raises OSError.

    An older owner that still runs can commit nothing afterwards.
    """
    for path in _children(checkpoints):
        match = _OWNED.fullmatch(path.name)
        if match and int(match[1]) <= owner:
            remove(path, owner=owner)


def remove(folder: Path, *, owner: int) -> None:
    """Remove a folder, if it is there. What no save wrote into it goes to `kept/`. Raises OSError."""
    try:
        going = _move(folder, folder.parent / f"{TEMPORARY}{owner}-old-{folder.name.removeprefix(TEMPORARY)}")
    except FileNotFoundError:
        return  # whoever wrote it has committed or removed it
    ours = [] if going.is_symlink() else [p for p in folders.unclaimed(going, ()) if _is_of_checkpoint(p)]
    if not folders.remove(going, ours):
        match = _OWNED.fullmatch(going.name)
        _move(going, folder.parent / KEPT / (match[2] if match else folder.name))


def prune(checkpoints: Path, *, keep: int, keep_every: int | None, stay: Set[int | None], owner: int) -> None:
    """Remove all but the newest `keep`, multiples of `keep_every`, and steps that are to `stay`. Raises OSError."""
    for old in list_checkpoints(checkpoints)[keep:]:
        step = step_of(old) or 0
        if step not in stay and (keep_every is None or step % keep_every):
            remove(old, owner=owner)


def put_away(folder: Path, reason: str) -> None:
    """Move a damaged checkpoint to `damaged/`, under its name and what is wrong with it. Raises OSError."""
    told = re.sub(r"[^a-zA-Z0-9.]+", "-", reason)[:80].strip("-")
    _move(folder, folder.parent / DAMAGED / f"{folder.name}-{told}")


def abandon_newer(checkpoints: Path, step: int) -> list[Path]:
    """Move every checkpoint of a later step to `abandoned/`, newest first; returns where they are now. Raises OSError.

    For going back to `step`: its later steps can then be saved again. No save may be in flight.
    """
    return [abandon(path) for path in list_checkpoints(checkpoints) if (step_of(path) or 0) > step]


def abandon(folder: Path) -> Path:
    """Move a checkpoint to `abandoned/`; returns where it is now. Raises OSError."""
    return _move(folder, folder.parent / ABANDONED / folder.name)


def _move(folder: Path, wanted: Path) -> Path:
    """Rename to `wanted`, or to the first of `wanted-2`, `wanted-3`, ... that is not taken."""
    wanted.parent.mkdir(exist_ok=True)
    free: Iterator[Path] = (wanted if n == 1 else wanted.with_name(f"{wanted.name}-{n}") for n in itertools.count(1))
    return folder.rename(next(path for path in free if not path.exists()))


def _is_of_checkpoint(path: Path) -> bool:
    return len(path.parts) == 1 and (_FILE.fullmatch(path.name) is not None or is_temporary(path))


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
