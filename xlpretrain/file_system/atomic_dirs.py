"""Folders that appear whole, and are removed only as far as this program wrote what is in them. Torch-free.

A new folder is made under a temporary name beside its place and renamed. One that it replaces is renamed aside first,
so that at every moment the old or the new one is there whole; `tidy` puts the old one back after a kill between the
two renames.
Nothing is removed by the name of a folder alone, but file by file: those that the caller claims.
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
"""The files in a folder that this program wrote, as paths relative to it. Those that tell what the others are come
last: a removal that was cut short can then be completed."""

_SHOWN = 3
_OF_NFS = re.compile(r"\.nfs[0-9a-f]+")  # left of a file that was removed while somebody read it


def final_place(folder: Path) -> Path:
    """The absolute path of a folder that is to be made, with links followed.

    Raises OSError if nothing can be renamed to it: it is a mount point, or a link to itself.
    """
    try:
        place = folder.resolve()
    except RuntimeError:  # until Python 3.12
        raise OSError(errno.ELOOP, "is a link to itself", str(folder)) from None
    if _is_mount_point(place):
        advice = f"name a folder in it, such as {folder / 'NAME'}"
        raise OSError(errno.EBUSY, f"is a mount point, which nothing can be renamed to; {advice}", str(folder))
    return place


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, under a name that nobody else has; removed at the end unless it was renamed.

    Raises OSError.
    """
    folder = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_dir(new: Path, target: Path, *, claims: Claims | None = None) -> None:
    """Rename `new` to `target`, down to the disk.

    Args:
        target: missing, empty, or (with `claims`) a folder in which everything is claimed; that is removed once the
            new folder is in its place.

    Raises:
        OSError: `target` holds something else or cannot be written; both folders are as they were.
    """
    for path in [*new.rglob("*"), new]:
        fsync(path)
    if not target.is_dir() or target.is_symlink() or not any(target.iterdir()):
        new.rename(target)
        return fsync(target.parent)
    if others := unclaimed(target, claims(target) if claims else ()):
        raise FileExistsError(errno.EEXIST, f"holds {named(others)}, which is not replaced: move it away", str(target))
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
    """Undo a replacement of `target` that was killed between its two renames, or complete one killed later.

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
    """List what lies in a folder besides the files claimed: other files, links, and folders with nothing in them.

    Paths are relative to the folder. Raises OSError.
    """
    claimed = set(claimed)
    return [path for path in _walk(folder) if path not in claimed or (folder / path).is_symlink()]


def remove(folder: Path, claimed: Iterable[Path]) -> bool:
    """Remove the claimed files of a folder, in their order, then folders that are empty. Returns whether that was all.

    Links are not followed, so what they lead to stays. Raises OSError.
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
    """Some paths in a message: the first few by name."""
    shown = ", ".join(map(str, paths[:_SHOWN]))
    return f"{shown} and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else shown


def _walk(folder: Path) -> list[Path]:
    """Files, links and empty folders under a folder, relative to it, sorted. Links are not followed."""
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
    try:  # a folder of the same disk that is mounted there
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    escaped = re.compile(r"\\([0-7]{3})")
    return str(path) in {escaped.sub(lambda match: chr(int(match[1], 8)), line.split(" ")[4]) for line in lines}
