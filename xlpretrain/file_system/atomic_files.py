"""Atomic file writes that survive a power failure. Torch-free."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = secrets.token_hex(4)  # process ids are not unique across hosts
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, text: str, *, fence: Callable[[], None] = lambda: None) -> None:
    """Write `text` to a temporary file and rename it: readers see the complete old or new file.

    Raises OSError, and any error of `fence`, which is called just before the rename; the old file is then unchanged
    and the temporary file is removed.
    """
    with atomic_writer(path, fence=fence) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_writer(path: Path, *, fence: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a temporary path next to `path` to write to, then rename it to `path`. Raises like `atomic_write`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{_HERE}.tmp")
    try:
        yield temporary
        fence()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """True for a temporary file of `atomic_writer`, which remains if its writer is killed."""
    return _TEMPORARY.fullmatch(path.name) is not None
