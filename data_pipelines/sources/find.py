"""Finding the files that sources name, all of them: what cannot be read is refused, never left out."""

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

from data_pipelines.sources.files import file_system, is_remote, remote_errors
from xlpretrain.errors import DataError

STANDARD_INPUT = "-"
_STAMPS = ("ETag", "mtime", "LastModified", "last_modified")


@dataclass(frozen=True, order=True)
class File:
    """A path or URL, the size, and what changes when the file does."""

    path: str
    num_bytes: int
    stamp: str = ""


def find_files(paths: str | Iterable[str]) -> list[File]:
    """The files that paths, folders, globs and URLs name, sorted, each once.

    Raises `DataError` for a path that names none, and for whatever is named and cannot be read: links that lead
    nowhere, folders without permission, folders that a glob matches without what is in them.
    """
    found: set[File] = set()
    for pattern in [paths] if isinstance(paths, str) else paths:
        if not is_remote(pattern):
            found.update(map(local_file, _find_local(pattern)))
        elif local := _local_path(pattern):
            found.update(_as_url(local_file(path)) for path in _find_local(local))
        else:
            found.update(_find_remote(pattern))
    return sorted(found)


def local_file(path: Path) -> File:
    """A file of this machine as it is now. Raises `DataError` if it is not there any more."""
    with _reading(str(path)):
        status = path.stat()
    return File(str(path), status.st_size, str(status.st_mtime_ns))


def refuse_changed(files: Iterable[File]) -> None:
    """Raise `DataError` if one of these files is not what it was when it was found, by size and time."""
    for file in files:
        now = _look_at(file.path)
        if now != file:
            raise DataError(
                f"{file.path}: changed after the build began ({file.num_bytes:,} bytes then, {now.num_bytes:,} now);"
                " build again, and leave the sources alone"
            )


def _look_at(path: str) -> File:
    if not is_remote(path):
        return local_file(Path(path))
    if local := _local_path(path):
        return _as_url(local_file(Path(local)))
    fs, inner = file_system(path)
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
    """The paths that match a glob. Raises `DataError` for a folder whose files it does not match."""
    found = list(_match(Path(path.anchor), path.relative_to(path.anchor).parts))
    inside = {file for match in found if match.is_dir() for file in _match(match, ("**",)) if not file.is_dir()}
    _refuse_left_out(pattern, {str(file) for file in inside}, {str(file) for file in found})
    return found


def _refuse_left_out(pattern: str, inside: set[str], found: set[str]) -> None:
    if left_out := sorted(inside - found):
        raise DataError(
            f"{pattern}: matches a folder, but not the files in it, such as {left_out[0]}; name the folder, or what is"
            " to be read of it (**/* is all)"
        )


def _match(folder: Path, parts: Sequence[str], above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Files and folders that match the parts of a glob, links followed. (`glob` passes over what it cannot read.)

    above: the folders that `**` has come through. Raises OSError, and `DataError` for links that lead nowhere or back.
    """
    head, *rest = parts
    if head == "**":
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DataError(f"{folder}: a link to a folder that it lies in; remove it, or name what is to be read")
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
    """The entries of a folder that match a name; hidden names must be asked for."""
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
    what = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "neither a file nor a folder"
    return DataError(f"{path}: {what}; remove it, or name the files that are to be read")


def _local_path(url: str) -> str | None:
    """The path of a URL of this machine's own files."""
    if not url.startswith(("file:", "local:")):
        return None
    return file_system(url)[1]


def _as_url(file: File) -> File:
    return File(f"file://{file.path}", file.num_bytes, file.stamp)


def _find_remote(url: str) -> list[File]:
    fs, inner = file_system(url)
    web = url.startswith(("http://", "https://"))  # where a folder cannot be told from a file
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
        raise DataError(f"{url}: names no file")
    return files


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _remote_file(fs: Any, name: str) -> File:
    info = fs.info(name)
    stamp = " ".join(str(info[key]) for key in _STAMPS if key in info)
    return File(str(fs.unstrip_protocol(name)), int(info.get("size") or 0), stamp)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Raise `DataError` for what finding files raises. name: of a source, for errors that name no file."""
    try:
        yield
    except remote_errors() as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise DataError(f"{getattr(error, 'filename', None) or name}: cannot be read: {reason}") from None
