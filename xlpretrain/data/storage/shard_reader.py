"""Reads a block from a shard: three `.npy` arrays in a tar, through a memory map. Torch-free.

Headers are validated before use: names, types and lengths must be the expected ones, so an array with a pickle is
rejected by its type without reading it.
"""

from __future__ import annotations

import io
import tarfile
import threading
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.lib import format as npy

TAR_BLOCK = 512
LARGEST_HEADER = 1024
MEMBERS = ("doc", "sent", "tok")
"""The arrays of a block, in their order in the shard."""

ENDS_DTYPE = np.dtype("<u4")

_PARSING = threading.Lock()
"""Held while a header is parsed: Python before 3.11.5 raises SystemError if two threads parse at once (gh-106905)."""


class DamagedBlockError(Exception):
    """Raised for a damaged block; callers that know the file and dataset turn it into a `DataError`."""


@dataclass(frozen=True)
class TokenBlock:
    """Consecutive tokens of a corpus, read-only.

    document_ends, sentence_ends: increasing positions in the block of the last tokens of documents (end-of-document
    tokens) and of sentences. End-of-document tokens belong to no sentence.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    sentence_ends: np.ndarray


@dataclass(frozen=True)
class BlockLocation:
    """The index entry of a block: its number, the offset of its first member's header, and the size of each member."""

    number: int
    offset: int
    tokens: int
    documents: int
    sentences: int
    dtype: np.dtype
    crc32: int


def member_name(number: int, member: str) -> str:
    """The name of a block's array in the tar."""
    return f"{number:08d}.{member}.npy"


def read_block(shard: memoryview, place: BlockLocation, *, check: bool) -> TokenBlock:
    """Read the block at `place`. check: verify its checksum too. Raises `DamagedBlockError`."""
    lengths = {"doc": place.documents, "sent": place.sentences, "tok": place.tokens}
    arrays, crc32, offset = [], 0, place.offset
    for member in MEMBERS:
        data = _read_member(shard, offset, member_name(place.number, member))
        dtype = place.dtype if member == "tok" else ENDS_DTYPE
        arrays.append(_view_array(data, dtype=dtype, length=lengths[member], member=member))
        crc32 = zlib.crc32(data, crc32) if check else 0
        offset += TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK
    if check and crc32 != place.crc32:
        raise DamagedBlockError("its checksum does not match")
    documents, sentences, tokens = arrays
    return TokenBlock(tokens=tokens, document_ends=documents, sentence_ends=sentences)


def _read_member(shard: memoryview, offset: int, name: str) -> memoryview:
    try:
        header = tarfile.TarInfo.frombuf(bytes(shard[offset : offset + TAR_BLOCK]), "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        raise DamagedBlockError(f"no tar header at byte {offset}") from None
    if header.name != name or not header.isreg():
        raise DamagedBlockError(f"expected the member {name}, got {header.name!r}")
    start = offset + TAR_BLOCK
    data = shard[start : start + header.size]
    if len(data) != header.size:
        raise DamagedBlockError(f"{name} is truncated")
    return data


def _view_array(data: memoryview, *, dtype: np.dtype, length: int, member: str) -> np.ndarray:
    stream = io.BytesIO(bytes(data[:LARGEST_HEADER]))
    try:
        if npy.read_magic(stream) != (1, 0):
            raise ValueError("an unknown version")
        with _PARSING:
            shape, _, found = npy.read_array_header_1_0(stream)
    except (ValueError, EOFError) as error:
        raise DamagedBlockError(f"its {member} array has no valid header: {error}") from None
    if found != dtype or shape != (length,):
        raise DamagedBlockError(f"its {member} array should be {dtype}{[length]}, got {found}{list(shape)}")
    if len(data) - stream.tell() != length * dtype.itemsize:
        raise DamagedBlockError(f"its {member} array has the wrong number of bytes")
    return np.frombuffer(data, dtype, length, offset=stream.tell())
