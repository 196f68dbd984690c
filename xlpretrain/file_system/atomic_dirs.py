"""Create and replace folders atomically, and remove only files that this program wrote. Torch-free.

A new folder is created under a temporary name next to the target and renamed. A folder that it replaces is renamed
first, so that the complete old or new folder exists at any time; `tidy` restores the old one after a kill between the
two renames. Removal is file by file, limited to files that the caller claims, never a whole folder by name.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from xlpretrain.file_system.atomic_files import fsync

Claims = Callable[[Path], Sequence[Path]]
"""Lists the files in a folder that this program wrote, as relative paths. Files that identify the others come last, so
that an interrupted removal can be completed."""

_SHOWN = 3
_OF_NFS = re.compile(r"\.nfs[0-9a-f]+")  # placeholder of a removed file that is still open


def final_place(folder: Path) -> Path:
    """Resolve the absolute path of a folder to create, following links.

    Raises OSError if the path cannot be a rename target: a mount point, or a link to itself.
    """
    try:
        place = folder.resolve()
    except RuntimeError:  # until Python 3.12
        raise OSError(errno.ELOOP, "is a link to itself", str(folder)) from None
    if _is_mount_point(place):
        advice = f"use a folder in it, such as {folder / 'NAME'}"
        raise OSError(errno.EBUSY, f"is a mount point, which cannot be replaced; {advice}", str(folder))
    return place


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Create a uniquely named folder next to `target`; removed on exit unless it was renamed.

    Raises OSError.
    """
    folder = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_dir(new: Path, target: Path, *, claims: Claims | None = None) -> None:
    """Rename `new` to `target`, with fsync.

    Args:
        target: must not exist, be empty or (with `claims`) only contain claimed files; these are removed after the
            rename.

    Raises:
        OSError: `target` contains other files or cannot be written; both folders are unchanged.
    """
    for path in [*new.rglob("*"), new]:
        fsync(path)
    if not target.is_dir() or target.is_symlink() or not any(target.iterdir()):
        new.rename(target)
        return fsync(target.parent)
    if others := unclaimed(target, claims(target) if claims else ()):
        raise FileExistsError(errno.EEXIST, f"contains other files ({named(others)}); move them away", str(target))
    old = target.with_name(f".{target.name}.{secrets.token_hex(8)}.replaced")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if not os.path.lexists(target):
            old.rename(target)
        raise
    fsync(target.parent)
    if claims:
        remove(old, claims(old))


def tidy(target: Path, *, claims: Claims) -> None:
    """Clean up after a killed `publish_dir`: undo it if killed between its two renames, else complete it.

    Raises OSError.
    """
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.replaced")
    beside = target.parent.iterdir() if target.parent.is_dir() else ()
    for old in [path for path in beside if name.fullmatch(path.name)]:
        if os.path.lexists(target):
            remove(old, claims(old))
        else:
            old.rename(target)


def unclaimed(folder: Path, claimed: Iterable[Path]) -> list[Path]:
    """List everything in a folder except the claimed files: other files, links and empty folders.

    Paths are relative to the folder. Raises OSError.
    """
    claimed = set(claimed)
    return [path for path in _walk(folder) if path not in claimed or (folder / path).is_symlink()]


def remove(folder: Path, claimed: Iterable[Path]) -> bool:
    """Remove the claimed files in order, then empty folders. Returns True if nothing is left.

    Links are not followed. Raises OSError.
    """
    if folder.is_symlink():
        return False
    present = {path for path in _walk(folder) if (folder / path).is_file() and not (folder / path).is_symlink()}
    for path in claimed:
        if path in present:
            (folder / path).unlink(missing_ok=True)
    for place, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(place)  # noqa: PTH106 (a string)
    return not folder.exists() or not _walk(folder)


def named(paths: Sequence[Path]) -> str:
    """Format paths for a message: the first few names and a count."""
    shown = ", ".join(map(str, paths[:_SHOWN]))
    return f"{shown} and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else shown


def _walk(folder: Path) -> list[Path]:
    """Sorted relative paths of files, links and empty folders under a folder. Links are not followed."""
    found = []

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        inside = Path(place).relative_to(folder)
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [inside / name for name in (*files, *links) if not _OF_NFS.fullmatch(name)]
        if not folders and not files and inside.parts:
            found.append(inside)
    return sorted(found)


def _is_mount_point(path: Path) -> bool:
    if os.path.ismount(path):
        return True
    try:  # bind mounts of the same disk
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    escaped = re.compile(r"\\([0-7]{3})")
    return str(path) in {escaped.sub(lambda match: chr(int(match[1], 8)), line.split(" ")[4]) for line in lines}
