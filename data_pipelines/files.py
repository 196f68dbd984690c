"""Files as they lie on disk or in object storage: found by path, folder, glob or URL, decompressed, decoded."""

from __future__ import annotations

import glob
import gzip
import io
import lzma
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from xlpretrain.errors import DataError

CHUNK_BYTES = 1 << 20
COMPRESSED = (".gz", ".zst", ".xz")
STANDARD_INPUT = "-"
_REMOTE_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, order=True)
class File:
    """A path or URL, the size, and what changes when the file does."""

    path: str
    num_bytes: int
    stamp: str = ""


def find_files(paths: str | Iterable[str]) -> list[File]:
    """The files that paths, folders, globs and URLs name, sorted, each once. Raises `DataError` for one without."""
    found: set[File] = set()
    for pattern in [paths] if isinstance(paths, str) else paths:
        found.update(_find_remote(pattern) if is_remote(pattern) else map(local_file, _find_local(pattern)))
    return sorted(found)


def local_file(path: Path) -> File:
    """A file of this machine."""
    status = path.stat()
    return File(str(path), status.st_size, str(status.st_mtime_ns))


def is_remote(path: str) -> bool:
    """Whether it is a URL."""
    return "://" in path


def is_compressed(path: str) -> bool:
    """Whether a file is decompressed as it is read."""
    return path.endswith(COMPRESSED)


def read_text(path: str) -> str:
    """The text of a whole file. Raises `DataError`."""
    data = b"".join(read_chunks(path))
    return decode(data, f"{path}: ").removeprefix("\ufeff")


def read_lines(path: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, without their ends, each with the offset of its first byte. Raises `DataError`.

    start: leave out the lines that begin before this offset.
    """
    begin = max(start - 1, 0)  # the byte before tells whether a line begins at `start`
    rest = b""
    for chunk in read_chunks(path, begin):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if begin >= start:
                yield begin, line
            begin += len(line) + 1
    if rest and begin >= start:
        yield begin, rest


def line_number(path: str, offset: int) -> int:
    """The number of the line that begins at an offset of a file, from 1: reads all before it."""
    count, left = 1, offset
    for chunk in read_chunks(path):
        count += chunk.count(b"\n", 0, left)
        left -= len(chunk)
        if left <= 0:
            break
    return count


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


def read_chunks(path: str, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file from an offset on (only 0 where it is decompressed). Raises `DataError`."""
    try:
        with open_file(path) as file:
            file.seek(start)
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            if path.endswith(".zst"):
                yield from _decompress_zst(chunks)
            elif path.endswith((".gz", ".xz")):
                with gzip.open(file) if path.endswith(".gz") else lzma.open(file) as unpacked:
                    yield from iter(lambda: unpacked.read(CHUNK_BYTES), b"")
            else:
                yield from chunks
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged or cut short, cannot be decompressed ({error}); fetch it again") from None
    except _remote_errors() as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


class ChunkReader(io.RawIOBase):
    """Chunks as a file that can be read once, from its begin to its end."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As `io.RawIOBase` has it."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


class Watched(Iterator[bytes]):
    """Chunks, of which the last ones can be looked at again."""

    _KEPT = 4  # of a mebibyte, when they are not decompressed: more than what a reader of them reads ahead

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=self._KEPT)
        self._offset = 0

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self._recent.append((self._offset, chunk))
        self._offset += len(chunk)
        return chunk

    def ends_in_zeros(self, start: int) -> bool:
        """Whether there is something from an offset on, and nothing but zeros."""
        recent = [chunk[max(start - first, 0) :] for first, chunk in self._recent]
        return not any(map(any, recent)) and not any(map(any, self)) and self._offset > start


def open_file(path: str) -> IO[bytes]:
    """A file or URL, to read bytes from anywhere. Raises OSError, or `DataError` if its kind of URL is not known."""
    if not is_remote(path):
        return Path(path).open("rb")
    fs, inner = _file_system(path)
    return cast(IO[bytes], fs.open(inner, "rb", block_size=_REMOTE_BLOCK_BYTES))


def _find_local(pattern: str) -> list[Path]:
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
    return files


def _find_remote(url: str) -> list[File]:
    fs, inner = _file_system(url)
    web = url.startswith(("http://", "https://"))  # where a folder cannot be told from a file
    try:
        if glob.has_magic(inner):
            names = [name for name in fs.glob(inner) if web or not fs.isdir(name)]
        else:
            names = [inner] if web or not fs.isdir(inner) else fs.find(inner)
        infos = {name: fs.info(name) for name in names if not _is_hidden(Path(name.rpartition("/")[2]))}
    except _remote_errors() as error:
        raise DataError(f"{url}: cannot be read: {error or type(error).__name__}") from None
    if not infos:
        raise DataError(f"{url}: names no file")
    stamps = ("ETag", "mtime", "LastModified", "last_modified")
    return [
        File(
            str(fs.unstrip_protocol(name)),
            int(info.get("size") or 0),
            " ".join(str(info[key]) for key in stamps if key in info),
        )
        for name, info in infos.items()
    ]


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, inner = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: {error}; `pip install` what this kind of URL needs, such as s3fs or aiohttp") from None
    return fs, str(inner)


def _remote_errors() -> tuple[type[Exception], ...]:
    """What reading a URL raises."""
    aiohttp = sys.modules.get("aiohttp")  # its errors are no OSErrors
    return (OSError, aiohttp.ClientError) if aiohttp else (OSError,)


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
