"""Files as they lie on disk or in object storage: read in chunks or lines, decompressed, decoded."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from xlpretrain.errors import DataError

CHUNK_BYTES = 1 << 20
COMPRESSED = (".gz", ".zst", ".xz")
_REMOTE_BLOCK_BYTES = 8 << 20


def is_remote(path: str) -> bool:
    """True if it is a URL."""
    return "://" in path


def is_compressed(path: str) -> bool:
    """True if a file is decompressed as it is read."""
    return path.endswith(COMPRESSED)


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


def decode(data: bytes) -> str:
    """`data` as UTF-8. Raises `DataError` that tells the byte and its line."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} (line {line}); convert it "
            "first, for instance with iconv -t utf-8"
        ) from None


def read_chunks(path: str, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file from an offset on (only 0 where it is decompressed). Raises `DataError`."""
    try:
        with open_file(path) as file:
            file.seek(start)
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            if is_compressed(path):
                _refuse_empty(file)
            if path.endswith(".zst"):
                yield from _decompress_zst(chunks)
            elif path.endswith((".gz", ".xz")):
                with gzip.open(file) if path.endswith(".gz") else lzma.open(file) as unpacked:
                    yield from iter(lambda: unpacked.read(CHUNK_BYTES), b"")
            else:
                yield from chunks
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged or cut short, cannot be decompressed ({error}); fetch it again") from None
    except remote_errors() as error:
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


class TailWatcher(Iterator[bytes]):
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
        """True if a file continues after an offset with nothing but zeros."""
        recent = [chunk[max(start - first, 0) :] for first, chunk in self._recent]
        return not any(map(any, recent)) and not any(map(any, self)) and self._offset > start


def open_file(path: str) -> IO[bytes]:
    """A file or URL, to read bytes from anywhere. Raises OSError, or `DataError` if its kind of URL is not known."""
    if not is_remote(path):
        return Path(path).open("rb")
    fs, inner = file_system(path)
    return cast(IO[bytes], fs.open(inner, "rb", block_size=_REMOTE_BLOCK_BYTES))


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. Raises `DataError` if its kind of URL is not known."""
    import fsspec

    try:
        fs, inner = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: {error}; `pip install` what this kind of URL needs, such as s3fs or aiohttp") from None
    return fs, str(inner)


def remote_errors() -> tuple[type[Exception], ...]:
    """The errors that reading a file or URL raises."""
    aiohttp = sys.modules.get("aiohttp")  # its errors are no OSErrors
    return (OSError, aiohttp.ClientError) if aiohttp else (OSError,)


def _refuse_empty(file: IO[bytes]) -> None:
    """The libraries take no bytes at all for the compression of no bytes."""
    if not file.read(1):
        raise EOFError("it is empty")
    file.seek(0)


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
