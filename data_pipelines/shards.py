"""The writing side of a dataset: blocks of tokens in tars that plain `webdataset` can stream, and their index."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from data_pipelines.pack import Encoded
from xlpretrain.data.manifest import SCHEMA_VERSION
from xlpretrain.data.shard_reader import ENDS_DTYPE, MEMBERS, member_name
from xlpretrain.data.tokenizer import Tokenizer

COLUMNS = ("offset", "crc32", "documents", "sentences", "source_bytes")


def write_dataset(
    encoded: Encoded,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    block_tokens: int,
    shard_bytes: int,
    built_from: Mapping[str, Any],
    advance: Callable[[int], None],
) -> None:
    """Shards and index of one split into a new folder, down to the disk. Raises OSError."""
    folder.mkdir()
    num_tokens = len(encoded.tokens)
    num_blocks = -(-num_tokens // block_tokens)
    shards: list[dict[str, Any]] = []
    number = 0
    while number < num_blocks:
        path = folder / f"shard-{len(shards):05d}.tar"
        columns: dict[str, list[int]] = {name: [] for name in COLUMNS}
        # The standard library's tar writer: webdataset's gives the same bytes, but importing it imports torch.
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            while number < num_blocks and tar.offset < shard_bytes:
                _write_block(tar, encoded, number, block_tokens, columns)
                number += 1
                advance(block_tokens if number < num_blocks else num_tokens - (num_blocks - 1) * block_tokens)
        members = len(MEMBERS) * len(columns["offset"])
        shards.append({"name": path.name, **_seal(path), "num_members": members, **columns})
    index = {
        "schema_version": SCHEMA_VERSION,
        "num_tokens": num_tokens,
        "block_tokens": block_tokens,
        "tail_tokens": num_tokens % block_tokens,
        "dtype": encoded.tokens.dtype.name,
        "num_unknown": int((encoded.tokens == tokenizer.vocabulary.unk).sum()),
        "vocabulary": asdict(tokenizer.vocabulary),
        "tokenizer_sha256": tokenizer.sha256,
        "built_from": built_from,
        "shards": shards,
    }
    write_file(folder / "index.json", json.dumps(index, indent=None, sort_keys=True).encode())


def write_file(path: Path, data: bytes) -> None:
    """A new file, down to the disk. Raises OSError."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_block(
    tar: tarfile.TarFile, encoded: Encoded, number: int, block_tokens: int, columns: Mapping[str, list[int]]
) -> None:
    start = number * block_tokens
    stop = min(start + block_tokens, len(encoded.tokens))
    documents = _within(encoded.document_ends, start, stop)
    sentences = _within(encoded.sentence_ends, start, stop)
    texts = _within(encoded.text_ends, start, stop)
    arrays = {
        "doc": (encoded.document_ends[documents] - start).astype(ENDS_DTYPE),
        "sent": (encoded.sentence_ends[sentences] - start).astype(ENDS_DTYPE),
        "tok": encoded.tokens[start:stop],
    }
    row = {"offset": tar.offset, "crc32": 0, "documents": len(arrays["doc"]), "sentences": len(arrays["sent"])}
    row["source_bytes"] = int(encoded.text_bytes[texts].sum())
    for member in MEMBERS:
        data = _npy_bytes(arrays[member])
        row["crc32"] = zlib.crc32(data, row["crc32"])
        info = tarfile.TarInfo(member_name(number, member))
        info.size, info.mode, info.mtime = len(data), 0o444, 0
        tar.addfile(info, io.BytesIO(data))
    for name in COLUMNS:
        columns[name].append(row[name])


def _within(ends: np.ndarray, start: int, stop: int) -> slice:
    first, last = ends.searchsorted([start, stop])
    return slice(int(first), int(last))


def _npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    npy.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return {"num_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
