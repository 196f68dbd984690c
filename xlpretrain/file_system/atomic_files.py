"""Files that are there whole or not at all, also after a power cut. Torch-free."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = secrets.token_hex(4)  # process numbers of two hosts may be equal
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, text: str, *, fence: Callable[[], None] = lambda: None) -> None:
    """Write `text` under a temporary name and rename it into place: readers see the old file or the new one, whole.

    Raises OSError, and what `fence` raises just before the rename; the old file is then as it was, and nothing else
    is left.
    """
    with atomic_writer(path, fence=fence) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_writer(path: Path, *, fence: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A temporary name beside `path`, to write to; renamed to `path` in the end. Raises as `atomic_write` does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{_HERE}.tmp")
    try:
        yield temporary
        fence()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Check whether a file has a name that `atomic_writer` gives: left there, its writer was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None
