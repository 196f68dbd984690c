"""Finds the files of sources. Files that cannot be read are an error, never skipped."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import scandir
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from data_pipelines.sources.files import remote_errors
from xlpretrain.errors import DataError
from xlpretrain.file_system.urls import is_url, open_file_system

STANDARD_INPUT = "-"
_STAMPS = ("ETag", "mtime", "LastModified", "last_modified")


@dataclass(frozen=True, order=True)
class File:
    """A file: path or URL, size, and a stamp that changes with its content (time or ETag)."""

    path: str
    num_bytes: int
    stamp: str = ""


def find_files(paths: str | Iterable[str]) -> list[File]:
    """The files that paths, folders, globs and URLs name, sorted, without repeats.

    Raises `DataError` for a path that names no file, and for anything that cannot be read: broken links, folders
    without permission, and folders that a glob matches without the files in them.
    """
    found: set[File] = set()
    for pattern in [paths] if isinstance(paths, str) else paths:
        if not is_url(pattern):
            found.update(map(local_file, _find_local(pattern)))
        elif local := _local_path(pattern):
            found.update(_as_url(local_file(path)) for path in _find_local(local))
        else:
            found.update(_find_remote(pattern))
    return sorted(found)


def local_file(path: Path) -> File:
    """A local file in its current state. Raises `DataError` if it does not exist."""
    with _reading(str(path)):
        status = path.stat()
    return File(str(path), status.st_size, str(status.st_mtime_ns))


def refuse_changed(files: Iterable[File]) -> None:
    """Raise `DataError` if one of these files has changed since it was found, by size or stamp."""
    for file in files:
        now = _look_at(file.path)
        if now != file:
            raise DataError(
                f"{file.path}: changed since the build began ({file.num_bytes:,} bytes then, {now.num_bytes:,} now);"
                " run the build again and do not change the sources meanwhile"
            )


def _look_at(path: str) -> File:
    if not is_url(path):
        return local_file(Path(path))
    if local := _local_path(path):
        return _as_url(local_file(Path(local)))
    fs, inner = open_file_system(path)
    fs.invalidate_cache()
    with _reading(path):
        return _remote_file(fs, inner)


def _find_local(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    with _reading(pattern):
        if path.is_dir():
            files = list(_match(path, ("**",)))
        elif path.exists():
            files = [path]
        elif glob.has_magic(pattern):
            files = _expand(pattern, path)
        else:
            raise DataError(f"{pattern}: no such file or folder (looked in {Path.cwd()})")
    files = [file for file in files if not file.is_dir()]
    if special := [file for file in files if not file.is_file()]:
        raise _no_file(special[0])
    if not files:
        what = "no files in this folder" if path.is_dir() else "matches no file"
        raise DataError(f"{pattern}: {what} (looked in {Path.cwd()})")
    return files


def _expand(pattern: str, path: Path) -> list[Path]:
    """The paths that match a glob. Raises `DataError` if it matches a folder, but not the files in it."""
    found = list(_match(Path(path.anchor), path.relative_to(path.anchor).parts))
    inside = {file for match in found if match.is_dir() for file in _match(match, ("**",)) if not file.is_dir()}
    _refuse_left_out(pattern, {str(file) for file in inside}, {str(file) for file in found})
    return found


def _refuse_left_out(pattern: str, inside: set[str], found: set[str]) -> None:
    if left_out := sorted(inside - found):
        raise DataError(
            f"{pattern}: matches a folder, but not the files in it, such as {left_out[0]}; name the folder, or the"
            " files to read (**/* for all)"
        )


def _match(folder: Path, parts: Sequence[str], above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Files and folders that match the parts of a glob. Follows links; unlike `glob`, fails if it cannot read.

    above: the folders that `**` passed through. Raises OSError, and `DataError` for broken or circular links.
    """
    head, *rest = parts
    if head == "**":
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DataError(f"{folder}: a link to a folder that contains it; remove it, or name the files to read")
        yield from _match(folder, rest or ("*",))
        for path in _named(folder, "*"):
            if _is_folder(path):
                yield from _match(path, parts, above | {here})
        return
    for path in _named(folder, head):
        if not rest:
            yield path
        elif _is_folder(path):
            yield from _match(path, rest)


def _named(folder: Path, pattern: str) -> list[Path]:
    """The entries of a folder that match a pattern; hidden ones only if it begins with a dot."""
    if not glob.has_magic(pattern):
        try:
            (folder / pattern).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [folder / pattern]
    with scandir(folder) as entries:
        names = [entry.name for entry in entries if fnmatchcase(entry.name, pattern)]
    return [folder / name for name in names if pattern.startswith(".") or not name.startswith(".")]


def _is_folder(path: Path) -> bool:
    try:
        return S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise _no_file(path) from None


def _no_file(path: Path) -> DataError:
    what = f"a link to {path.readlink()}, which does not exist" if path.is_symlink() else "neither a file nor a folder"
    return DataError(f"{path}: {what}; remove it, or name the files to read")


def _local_path(url: str) -> str | None:
    """The path of a URL of local files; None for other URLs."""
    if not url.startswith(("file:", "local:")):
        return None
    return open_file_system(url)[1]


def _as_url(file: File) -> File:
    return File(f"file://{file.path}", file.num_bytes, file.stamp)


def _find_remote(url: str) -> list[File]:
    fs, inner = open_file_system(url)
    web = url.startswith(("http://", "https://"))  # which have no folders
    with _reading(url):
        if not glob.has_magic(inner):
            names = [inner] if web or not fs.isdir(inner) else fs.find(inner)
        elif web:
            names = fs.glob(inner)
        else:
            matches = fs.glob(inner)
            folders = [name for name in matches if fs.isdir(name)]
            names = [name for name in matches if name not in folders]
            inside = {name for folder in folders for name in fs.find(folder) if not _is_hidden(name)}
            _refuse_left_out(url, inside, set(names))
        files = [_remote_file(fs, name) for name in names if not _is_hidden(name)]
    if not files:
        raise DataError(f"{url}: no such file")
    return files


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _remote_file(fs: Any, name: str) -> File:
    info = fs.info(name)
    stamp = " ".join(str(info[key]) for key in _STAMPS if key in info)
    return File(str(fs.unstrip_protocol(name)), int(info.get("size") or 0), stamp)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn errors of the file system into `DataError`. name: path to report if the error has none."""
    try:
        yield
    except remote_errors() as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise DataError(f"{getattr(error, 'filename', None) or name}: cannot be read: {reason}") from None
