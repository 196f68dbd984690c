"""Text files as they lie on disk: found by path, folder or glob, decompressed, decoded."""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from xlpretrain.errors import DataError

CHUNK_BYTES = 1 << 20


def find_files(paths: str | Iterable[str]) -> list[Path]:
    """The files that paths, folders and globs name, sorted, each once. Raises `DataError` if one names nothing."""
    found: set[Path] = set()
    for pattern in [paths] if isinstance(paths, str) else paths:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = [file for file in path.rglob("*") if not _is_hidden(file.relative_to(path))]
        elif path.exists():
            files = [path]
        elif glob.has_magic(pattern):
            files = [Path(name) for name in glob.iglob(str(path), recursive=True)]  # noqa: PTH207 (may be absolute)
        else:
            raise DataError(f"{pattern}: no such file or folder (looked in {Path.cwd()})")
        files = [file for file in files if file.is_file()]
        if not files:
            what = "no files in this folder" if path.is_dir() else "matches no file"
            raise DataError(f"{pattern}: {what} (looked in {Path.cwd()})")
        found.update(files)
    return sorted(found)


def read_text(path: Path) -> str:
    """The text of a whole file. Raises `DataError`."""
    data = b"".join(_read_chunks(path))
    return decode(data, f"{path}: ").removeprefix("\ufeff")


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without their ends. Raises `DataError`."""
    rest = b""
    for chunk in _read_chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def decode(data: bytes, where: str) -> str:
    """`data` as UTF-8. Raises `DataError`, headed by `where`, that tells the byte and its line."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where}not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} (line {line}); convert it "
            "first, for instance with iconv -t utf-8"
        ) from None


def _read_chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            if path.suffix == ".zst":
                yield from _decompress_zst(iter(lambda: file.read(CHUNK_BYTES), b""))
            elif path.suffix == ".gz":
                with gzip.open(file) as unzipped:
                    yield from iter(lambda: unzipped.read(CHUNK_BYTES), b"")
            else:
                yield from iter(lambda: file.read(CHUNK_BYTES), b"")
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged or cut short, cannot be decompressed ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _decompress_zst(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Every frame. The library's own stream reader takes a file that is cut short for whole."""
    frame = None
    for chunk in chunks:
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame ends too early")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
