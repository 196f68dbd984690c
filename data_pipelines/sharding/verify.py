"""`xlpretrain data verify`: checks every byte of a dataset against its index."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from rich.console import Console

from data_pipelines.execution.cores import usable_cores
from data_pipelines.execution.progress import ProgressReporter
from data_pipelines.execution.workers import Workers
from data_pipelines.sharding.claims import TOKENIZER_FOLDER
from data_pipelines.sharding.stats import dataset_folders
from xlpretrain.data.storage.dataset import ShardEntry, TokenDataset, check_shard_size
from xlpretrain.data.tokenizers.open import find_tokenizer_file, load_tokenizer
from xlpretrain.errors import DataError
from xlpretrain.tracking.printing import AnswerConsole

SMALL_BYTES = 64 << 20
"""Below this size, starting worker processes takes longer than the work."""
BLOCKS_AT_ONCE = 64


def verify(folder: Path, *, console: Console | None = None, workers: int | None = None) -> list[str]:
    """Print and return all problems of the dataset in `folder`, or of the datasets in it.

    workers: number of processes (default: 1 for small datasets, else all cores). Raises `DataError` if there is no
    dataset.
    """
    console = console or AnswerConsole()
    problems = []
    folders = dataset_folders(folder)
    size = sum(file.stat().st_size for path in folders for file in path.glob("*.tar"))
    with Workers(workers or (usable_cores() if size > SMALL_BYTES else 1)) as pool:
        for path in folders:
            found = list(_verify_dataset(path, ProgressReporter(console), pool))
            problems += found
            for problem in found:
                console.print(problem, style="red", highlight=False, markup=False)
            if not found:
                console.print(f"{path}: all shards are intact", highlight=False)
    return problems


def _verify_dataset(folder: Path, stages: ProgressReporter, workers: Workers) -> Iterator[str]:
    try:
        manifest = TokenDataset.parse(folder)
    except DataError as error:
        yield str(error)
        return
    readable = []
    for number, shard in enumerate(manifest.shards):
        try:
            check_shard_size(shard)
            readable.append(number)
        except DataError as error:
            yield str(error)
    with stages.stage(f"Verifying {folder.name}", "shards", len(readable)) as advance:
        for found in workers.map(partial(_check_shard, folder), readable):
            yield from found
            advance(1)
    numbers = np.flatnonzero(np.isin(manifest.shard_numbers, readable)).tolist()
    parts = [numbers[start : start + BLOCKS_AT_ONCE] for start in range(0, len(numbers), BLOCKS_AT_ONCE)]
    with stages.stage(f"Reading {folder.name}", "blocks", len(numbers)) as advance:
        for part, found in zip(parts, workers.map(partial(_check_blocks, folder), parts), strict=True):
            yield from found
            advance(len(part))
    yield from _check_tokenizer(folder, manifest)


@lru_cache(1)
def _manifest(folder: Path, stamp: int) -> TokenDataset:
    return TokenDataset.parse(folder)


def _open(folder: Path) -> TokenDataset:
    """Cached per worker."""
    return _manifest(folder, (folder / "index.json").stat().st_mtime_ns)


def _check_shard(folder: Path, number: int) -> list[str]:
    return list(_problems_of_shard(_open(folder).shards[number]))


def _check_blocks(folder: Path, numbers: Sequence[int]) -> list[str]:
    manifest = _open(folder)
    return [problem for number in numbers for problem in _check_block(manifest, number)]


def _problems_of_shard(shard: ShardEntry) -> Iterator[str]:
    with shard.path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield f"{shard.path}: damaged, the checksum does not match the index; copy or build the dataset again"
    try:
        with tarfile.open(shard.path, "r:") as tar:
            names = tar.getnames()
    except tarfile.TarError as error:
        yield f"{shard.path}: incomplete tar file: {error}"
        return
    if len(names) != shard.num_members:
        yield f"{shard.path}: {len(names)} members, expected {shard.num_members}"
    if strange := [name for name in names if Path(name).name != name or name == ".."]:
        yield f"{shard.path}: unsafe member name {strange[0]!r}, expected a plain file name; do not unpack this file"


def _check_block(manifest: TokenDataset, number: int) -> Iterator[str]:
    where = f"{manifest.shards[manifest.shard_numbers[number]].path}: block {number}"
    try:
        block = manifest.block(number)
    except DataError as error:
        yield str(error)
        return
    if block.tokens.max() >= manifest.vocabulary.size:
        yield f"{where}: token {block.tokens.max()} is outside the vocabulary of {manifest.vocabulary.size}"
    for name, ends in {"document": block.document_ends, "sentence": block.sentence_ends}.items():
        if np.any(np.diff(ends.astype(np.int64)) <= 0) or np.any(ends >= len(block.tokens)):
            yield f"{where}: {name} ends are not increasing positions in the block"
            return
    if not np.array_equal(np.flatnonzero(block.tokens == manifest.vocabulary.eod), block.document_ends):
        yield f"{where}: document ends do not match the end-of-document tokens"


def _check_tokenizer(folder: Path, manifest: TokenDataset) -> Iterator[str]:
    path = find_tokenizer_file(folder.absolute().parent / TOKENIZER_FOLDER)
    try:
        tokenizer = load_tokenizer(path)
    except DataError as error:
        yield str(error)
        return
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        yield f"{path}: not the tokenizer that encoded {folder}"
