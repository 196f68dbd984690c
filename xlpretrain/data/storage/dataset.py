"""Reads a dataset: its index, and its blocks through memory maps. Torch-free."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from xlpretrain.data.storage.remote import BlockCache, RemoteBlocks, download
from xlpretrain.data.storage.shard_reader import BlockLocation, DamagedBlockError, TokenBlock, read_block
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.open import TOKENIZER_FILES, find_tokenizer_file, load_tokenizer
from xlpretrain.errors import DamagedDataError, DataError
from xlpretrain.file_system.credentials import without_credentials
from xlpretrain.file_system.urls import is_url

SCHEMA_VERSION = 1
EMPTY_ENDS = np.empty(0, np.int64)
CACHED_BLOCKS, MAPPED_SHARDS = 512, 128  # both bound the number of open files


@dataclass(frozen=True)
class ShardEntry:
    """The index entry of a shard."""

    path: Path
    num_bytes: int
    sha256: str
    num_members: int


class TokenDataset:
    """A dataset: `num_blocks` blocks of `block_tokens` tokens, and a short last block (tail) of `tail_tokens`, if any.

    Counts include the tail: num_tokens (with end-of-document tokens), num_documents, num_sentences, num_unknown
    (tokens), num_bytes (UTF-8 bytes of the source text). Columns have one entry per block, with the tail last:
    shard_numbers, offsets (of the block in its shard), checksums (CRC-32 of its three arrays), documents, sentences,
    source_bytes (of the sentences with their last token in the block).
    """

    remote: RemoteBlocks | None = None

    def __init__(self, folder: Path, index: Mapping[str, Any]):
        """Use `TokenDataset.open` instead. Raises KeyError, TypeError or ValueError if the parsed index is invalid."""
        self.folder = folder
        self.block_tokens, self.tail_tokens = int(index["block_tokens"]), int(index["tail_tokens"])
        self.dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[index["dtype"]])
        self.vocabulary = Vocabulary(**index["vocabulary"])
        self.tokenizer_sha256 = str(index["tokenizer_sha256"])
        self.num_unknown = int(index["num_unknown"])
        self.built_from: Mapping[str, Any] = index["built_from"]
        self.shards = [
            ShardEntry(folder / _plain_name(s["name"]), s["num_bytes"], s["sha256"], s["num_members"])
            for s in index["shards"]
        ]
        self.offsets, self.checksums = _column(index, "offset"), _column(index, "crc32")
        self.documents, self.sentences = _column(index, "documents"), _column(index, "sentences")
        self.source_bytes = _column(index, "source_bytes")
        lengths = [len(shard["offset"]) for shard in index["shards"]]
        self.shard_numbers = np.repeat(np.arange(len(lengths)), lengths)
        if len({len(c) for c in (self.offsets, self.checksums, self.documents, self.sentences, self.source_bytes)}) > 1:
            raise ValueError("its columns differ in length")
        self.num_blocks = len(self.offsets) - (self.tail_tokens > 0)
        self.num_tokens = self.num_blocks * self.block_tokens + self.tail_tokens
        if not 0 <= self.tail_tokens < self.block_tokens or self.num_tokens != index["num_tokens"]:
            raise ValueError("its numbers of blocks and tokens are inconsistent")
        self.num_documents = int(self.documents.sum())
        self.num_sentences = int(self.sentences.sum())
        self.num_bytes = int(self.source_bytes.sum())
        self._reopen: Callable[[], TokenDataset] = partial(TokenDataset.open, folder)
        self._verified = np.zeros(len(self.offsets), bool)
        self._cached_block = lru_cache(CACHED_BLOCKS)(self._load_block)
        self._cached_map = lru_cache(MAPPED_SHARDS)(self._map_shard)

    @classmethod
    def open(
        cls, folder: Path | str, *, tokenizer_sha256: str | None = None, cache: BlockCache | None = None
    ) -> TokenDataset:
        """Open the dataset in a folder or at a URL.

        Reads the index and checks the sizes of the shards. For a URL, the index and tokenizer are downloaded to the
        cache, and blocks when they are needed.

        Raises `DataError` if there is no dataset, it is damaged or incomplete, or was encoded with another tokenizer.
        """
        if is_url(folder):
            manifest = cls._open_remote(str(folder), cache or BlockCache())
        else:
            manifest = cls.parse(Path(folder))
            for shard in manifest.shards:
                check_shard_size(shard)
        if tokenizer_sha256 not in (None, manifest.tokenizer_sha256):
            raise DataError(
                f"{without_credentials(str(folder))}: encoded with another tokenizer (sha256 "
                f"{manifest.tokenizer_sha256[:12]}, expected {str(tokenizer_sha256)[:12]}); use datasets from the "
                "same build"
            )
        return manifest

    @classmethod
    def _open_remote(cls, url: str, cache: BlockCache) -> TokenDataset:
        tokenizers = {f"../tokenizer/{name}": False for name in TOKENIZER_FILES}
        manifest = cls.parse(download(url, cache, {"index.json": True, **tokenizers}))
        manifest.remote = RemoteBlocks(
            url, manifest.folder / manifest.fingerprint[:16], cache, manifest._place_in_shard
        )
        manifest._reopen = partial(cls.open, url, cache=cache)
        return manifest

    @classmethod
    def parse(cls, folder: Path) -> TokenDataset:
        """Open the dataset from its index alone, without checking its shards. Raises `DataError`."""
        try:
            return cls(folder, read_index(folder))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{folder / 'index.json'}: damaged ({reason}); build the dataset again") from None

    @property
    def fingerprint(self) -> str:
        """A digest of all tokens in order. Training on two datasets with the same fingerprint is identical."""
        parts = [self.tokenizer_sha256, *(shard.sha256 for shard in self.shards)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        """The path of the tokenizer, beside the splits."""
        return find_tokenizer_file(self.folder.parent / "tokenizer")

    def open_tokenizer(self) -> Tokenizer:
        """Open the tokenizer beside the splits. Raises `DataError` if it is not the one that encoded them."""
        tokenizer = load_tokenizer(self.tokenizer_path)
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise DataError(
                f"{self.tokenizer_path}: not the tokenizer of {self.folder} (sha256 {tokenizer.sha256[:12]}, expected"
                f" {self.tokenizer_sha256[:12]}); copy the tokenizer from the same build"
            )
        return tokenizer

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reopen, ()

    def block(self, number: int) -> TokenBlock:
        """Block `number`; `block(num_blocks)` is the tail, if there is one.

        The checksum is verified on the first read. Raises `DataError` if the block is damaged.
        """
        return self._cached_block(number)

    def block_bytes(self, number: int) -> int:
        """Bytes of source text of the sentences that end in the block."""
        return int(self.source_bytes[number])

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The tokens at positions [start, stop) of the dataset: a view if they are in one block, else a copy."""
        number, low = divmod(start, self.block_tokens)
        if 0 <= start < stop <= self.num_tokens and low + stop - start <= self.block_tokens:
            return self._cached_block(number).tokens[low : low + stop - start]
        parts = [self.block(number).tokens[low:high] for number, low, high in self._spans(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])

    def document_ends(self, start: int, stop: int) -> np.ndarray:
        """Positions in [start, stop) of the last tokens of documents (int64, relative to the dataset's first token)."""
        return self._ends("document_ends", start, stop)

    def sentence_ends(self, start: int, stop: int) -> np.ndarray:
        """Positions in [start, stop) of the last tokens of sentences (int64, relative to the dataset's first token)."""
        return self._ends("sentence_ends", start, stop)

    def first_sentence_end(self, start: int, stop: int) -> int | None:
        """The first of `sentence_ends`, or None."""
        for number, low, high in self._spans(start, stop):
            ends = self.block(number).sentence_ends
            at = ends.searchsorted(ends.dtype.type(low))
            if at < len(ends) and ends[at] < high:
                return int(ends[at]) + number * self.block_tokens
        return None

    def last_sentence_end(self, start: int, stop: int) -> int | None:
        """The last of `sentence_ends`, or None."""
        for number, low, high in reversed(list(self._spans(start, stop))):
            ends = self.block(number).sentence_ends
            at = ends.searchsorted(ends.dtype.type(high))
            if at and ends[at - 1] >= low:
                return int(ends[at - 1]) + number * self.block_tokens
        return None

    def _ends(self, kind: str, start: int, stop: int) -> np.ndarray:
        parts = []
        for number, low, high in self._spans(start, stop):
            ends = getattr(self._cached_block(number), kind)
            # Bounds of another dtype would make searchsorted convert the whole array.
            first, last = ends.searchsorted(np.array((low, high), ends.dtype))
            parts.append(ends[first:last] + np.int64(number * self.block_tokens))
        return parts[0] if len(parts) == 1 else np.concatenate([EMPTY_ENDS, *parts])

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The blocks that contain [start, stop), each with the range within the block."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"[{start}, {stop}) is outside the {self.num_tokens} tokens of {self.folder}")
        for number in range(start // self.block_tokens, -(-stop // self.block_tokens) if start < stop else 0):
            first = number * self.block_tokens
            yield number, max(start - first, 0), min(stop - first, self.block_tokens)

    def prefetch(self, number: int) -> None:
        """Start to fetch a block if the dataset is remote; does not block."""
        if self.remote is not None:
            self.remote.prefetch(number)

    def _load_block(self, number: int) -> TokenBlock:
        if not 0 <= number < len(self.offsets):
            raise IndexError(f"{self.folder} has no block {number}")
        shard = int(self.shard_numbers[number])
        try:
            if self.remote is not None:
                return self.remote.block(number)
            block = read_block(self._cached_map(shard), self._place(number), check=not self._verified[number])
        except DamagedBlockError as error:
            raise DamagedDataError(
                f"{self.shards[shard].path}: block {number} is damaged: {error}; copy or build the dataset again "
                f"(`xlpretrain data verify {self.folder}` lists all damage), or skip damaged blocks "
                "(data.on_damage=skip)"
            ) from None
        self._verified[number] = True
        return block

    def _place(self, number: int) -> BlockLocation:
        return BlockLocation(
            number=number,
            offset=int(self.offsets[number]),
            tokens=self.block_tokens if number < self.num_blocks else self.tail_tokens,
            documents=int(self.documents[number]),
            sentences=int(self.sentences[number]),
            dtype=self.dtype,
            crc32=int(self.checksums[number]),
        )

    def _place_in_shard(self, number: int) -> tuple[str, int, int, BlockLocation]:
        """The name of a block's shard, the block's byte range in it, and its location within that range."""
        place, shard = self._place(number), self.shards[self.shard_numbers[number]]
        follows = number + 1 < len(self.offsets) and self.shard_numbers[number + 1] == self.shard_numbers[number]
        end = int(self.offsets[number + 1]) if follows else shard.num_bytes
        return shard.path.name, place.offset, end, replace(place, offset=0)

    def _map_shard(self, number: int) -> memoryview:
        path = self.shards[number].path
        try:
            with path.open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a dataset. Raises `DataError`, also for an unknown schema version."""
    path = folder / "index.json"
    try:
        index = parse_index(path.read_bytes())
    except FileNotFoundError:
        parts = sorted(f.parent.name for f in folder.glob("*/index.json"))
        hint = f"use one of its splits: {', '.join(parts)}" if parts else "build one with `xlpretrain data build`"
        raise DataError(f"{folder}: not a dataset (no index.json); {hint}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); build the dataset again") from None
    version = index.get("schema_version") if isinstance(index, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version {version}, expected {SCHEMA_VERSION}; build the dataset again")
    return dict(index)


def add_checksum(index: Mapping[str, Any]) -> str:
    """The text of an `index.json`: the index, and a SHA-256 checksum of the text before it."""
    text = json.dumps({key: value for key, value in index.items() if key != "checksum"}, sort_keys=True)
    return f'{text[:-1]}, "checksum": "{hashlib.sha256(text.encode()).hexdigest()}"}}'


def parse_index(data: bytes) -> Any:
    """Parse an index and verify its checksum, if it has one. Raises ValueError."""
    index = json.loads(data)
    if isinstance(index, dict) and "checksum" in index:
        text, _, _ = data.rpartition(b', "checksum": ')
        if index.pop("checksum") != hashlib.sha256(text + b"}").hexdigest():
            raise ValueError("its checksum does not match")
    return index


def check_shard_size(shard: ShardEntry) -> None:
    """Raise `DataError` if the shard is missing or its size differs from the index."""
    try:
        size = shard.path.stat().st_size
    except OSError:
        raise DataError(f"{shard.path}: this shard is missing; copy or build the dataset again") from None
    if size != shard.num_bytes:
        raise DataError(
            f"{shard.path}: {size} bytes, expected {shard.num_bytes}; it is truncated or was changed: copy or build "
            "the dataset again"
        )


def _plain_name(name: str) -> str:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"expected a shard beside the index, got {name!r}")
    return name


def _column(index: Mapping[str, Any], name: str) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(np.asarray(s[name], np.int64) for s in index["shards"])])
