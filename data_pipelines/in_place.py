"""A folder that appears whole or not at all: made under a temporary name beside its place, then renamed."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from xlpretrain.durable import sync


def temporary_folder(out: Path, purpose: str) -> Path:
    """A name beside `out` that is this process's own."""
    out = out.absolute()
    return out.parent / f".{out.name}.{purpose}-{socket.gethostname()}-{os.getpid()}"


def remove_stale(out: Path) -> None:
    """Remove what builds left that were killed on this machine."""
    parent = out.absolute().parent
    prefixes = tuple(
        temporary_folder(out, purpose).name.removesuffix(str(os.getpid())) for purpose in ("building", "replaced")
    )
    for folder in parent.iterdir() if parent.is_dir() else ():
        pid = folder.name.rpartition("-")[2]
        if folder.name.startswith(prefixes) and pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # another process had this number: this one has begun nothing yet
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def put_in_place(folder: Path, out: Path, *, replace: bool) -> None:
    """Make `folder` be `out`, down to the disk. Raises OSError, `out` then being as it was."""
    for directory in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync(directory)
    replaced = temporary_folder(out, "replaced")
    if replace and out.exists():
        out.rename(replaced)
    try:
        folder.rename(out)
    except OSError:
        if replaced.exists():
            replaced.rename(out)
        raise
    sync(out.absolute().parent)
    shutil.rmtree(replaced, ignore_errors=True)
