"""Reading files from disk or object storage, in chunks or lines, with decompression and decoding."""

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
from xlpretrain.file_system.urls import is_url, open_file_system

CHUNK_BYTES = 1 << 20
COMPRESSED = (".gz", ".zst", ".xz")
_REMOTE_BLOCK_BYTES = 8 << 20
_ZST_BYTES = 64 << 10
"""Compressed bytes to decompress at a time; the output is a few times larger."""
_ZST_WINDOW_BYTES = 1 << 31
"""The largest window that zstd writes (--long=31), which bounds the memory to read a file."""


def is_compressed(path: str) -> bool:
    """True if a file is decompressed on reading, by its extension."""
    return path.endswith(COMPRESSED)


def read_lines(path: str, start: int = 0, stop: int = -1) -> Iterator[tuple[int, bytes]]:
    """The lines of a file without line ends, each with the offset of its first byte. Raises `DataError`.

    start: skip lines that begin before this offset. stop: give up looking for the first line at this offset (-1: at
    the end of the file).
    """
    begin = max(start - 1, 0)  # a line begins at `start` if the byte before is a line end
    unfinished: list[bytes] = []  # parts of a long line, joined once
    for chunk in read_chunks(path, begin):
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join([*unfinished, lines[0]])
            unfinished = []
        unfinished.append(rest)
        for line in lines:
            if begin >= start:
                yield begin, line
            begin += len(line) + 1
        if begin < start and 0 <= stop <= begin + sum(map(len, unfinished)):
            return
    if any(unfinished) and begin >= start:
        yield begin, b"".join(unfinished)


def line_number(path: str, offset: int) -> int:
    """The 1-based number of the line at an offset of a file. Reads everything before it."""
    count, left = 1, offset
    for chunk in read_chunks(path):
        count += chunk.count(b"\n", 0, left)
        left -= len(chunk)
        if left <= 0:
            break
    return count


def decode(data: bytes) -> str:
    """Decode UTF-8. Raises `DataError` with the invalid byte, its offset and line."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} (line {line}); convert it "
            "first, for instance with iconv -t utf-8"
        ) from None


def read_chunks(path: str, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file from an offset on, which must be 0 for compressed files. Raises `DataError`."""
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
    except zstandard.ZstdError as error:
        if "too much memory" in str(error):
            raise DataError(
                f"{path}: compressed with a window of more than 2 GiB, which is not supported; compress it again with "
                "zstd --long=31 or less"
            ) from None
        raise DataError(_damaged(path, error)) from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(_damaged(path, error)) from None
    except remote_errors() as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


class ChunkReader(io.RawIOBase):
    """A file object that reads chunks once, from start to end."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase.readinto`."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)  # slicing a memoryview does not copy
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


class TailWatcher(Iterator[bytes]):
    """An iterator of chunks that keeps the last few."""

    _KEPT = 4  # chunks of 1 MiB unless decompressed: more than a reader's buffer

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
        """True if the file continues after `start` with only zeros."""
        recent = [chunk[max(start - first, 0) :] for first, chunk in self._recent]
        return not any(map(any, recent)) and not any(map(any, self)) and self._offset > start


def open_file(path: str) -> IO[bytes]:
    """Open a path or URL for reading, with random access. Raises OSError, or `DataError` for an unknown URL scheme."""
    if not is_url(path):
        return Path(path).open("rb")
    fs, inner = open_file_system(path)
    return cast(IO[bytes], fs.open(inner, "rb", block_size=_REMOTE_BLOCK_BYTES))


def remote_errors() -> tuple[type[Exception], ...]:
    """The exceptions that reading a file or URL can raise."""
    aiohttp = sys.modules.get("aiohttp")  # its errors are not OSErrors
    return (OSError, aiohttp.ClientError) if aiohttp else (OSError,)


def _damaged(path: str, error: Exception) -> str:
    return f"{path}: damaged or truncated, cannot be decompressed ({error}); download it again"


def _refuse_empty(file: IO[bytes]) -> None:
    """Raise EOFError for an empty file, which the libraries accept as compressed data."""
    if not file.read(1):
        raise EOFError("it is empty")
    file.seek(0)


def _decompress_zst(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress all frames. Unlike the library's stream reader, detects a truncated file."""
    frame = None
    for chunk in chunks:
        for start in range(0, len(chunk), _ZST_BYTES):
            data = chunk[start : start + _ZST_BYTES]
            while data:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=_ZST_WINDOW_BYTES).decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame ends too early")
