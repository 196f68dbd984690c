"""`xlpretrain data verify`: every byte of a dataset against its index."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from data_pipelines.progress import Stages
from data_pipelines.shards import TOKENIZER_FOLDER
from data_pipelines.stats import dataset_folders
from xlpretrain.data.manifest import Manifest, Shard, check_size
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.errors import DataError


def verify(folder: Path, *, console: Console | None = None) -> list[str]:
    """Everything that is wrong with the dataset in `folder`, or with those in it; printed too. Empty if all is well.

    Raises `DataError` if there is no dataset.
    """
    console = console or Console()
    problems = []
    for path in dataset_folders(folder):
        found = list(_verify_dataset(path, Stages(console)))
        problems += found
        for problem in found:
            console.print(problem, style="red", highlight=False, markup=False)
        if not found:
            console.print(f"{path}: every shard is as it was built", highlight=False)
    return problems


def _verify_dataset(folder: Path, stages: Stages) -> Iterator[str]:
    try:
        manifest = Manifest.parse(folder)
    except DataError as error:
        yield str(error)
        return
    readable = set()
    with stages.stage(f"Verifying {folder.name}", "shards", len(manifest.shards)) as advance:
        for number, shard in enumerate(manifest.shards):
            try:
                check_size(shard)
                readable.add(number)
                yield from _check_shard(shard)
            except DataError as error:
                yield str(error)
            advance(1)
    with stages.stage(f"Reading {folder.name}", "blocks", len(manifest.offsets)) as advance:
        for number, shard_number in enumerate(manifest.shard_numbers):
            if int(shard_number) in readable:
                yield from _check_block(manifest, number)
            advance(1)
    yield from _check_tokenizer(folder, manifest)


def _check_shard(shard: Shard) -> Iterator[str]:
    with shard.path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            yield f"{shard.path}: other bytes than were written; copy the dataset again, or build it again"
    try:
        with tarfile.open(shard.path, "r:") as tar:
            names = tar.getnames()
    except tarfile.TarError as error:
        yield f"{shard.path}: not a whole tar file: {error}"
        return
    if len(names) != shard.num_members:
        yield f"{shard.path}: {len(names)} members, expected {shard.num_members}"
    if strange := [name for name in names if Path(name).name != name or name == ".."]:
        yield f"{shard.path}: a member must not point elsewhere, got {strange[0]!r}; do not unpack this file"


def _check_block(manifest: Manifest, number: int) -> Iterator[str]:
    where = f"{manifest.shards[manifest.shard_numbers[number]].path}: block {number}"
    try:
        block = manifest.block(number)
    except DataError as error:
        yield str(error)
        return
    if block.tokens.max() >= manifest.vocabulary.size:
        yield f"{where}: has the token {block.tokens.max()}, beyond the vocabulary of {manifest.vocabulary.size}"
    for name, ends in {"document": block.document_ends, "sentence": block.sentence_ends}.items():
        if np.any(np.diff(ends.astype(np.int64)) <= 0) or np.any(ends >= len(block.tokens)):
            yield f"{where}: its {name} ends are not increasing positions"
            return
    if not np.array_equal(np.flatnonzero(block.tokens == manifest.vocabulary.eod), block.document_ends):
        yield f"{where}: its documents do not end where its end-of-document symbols are"


def _check_tokenizer(folder: Path, manifest: Manifest) -> Iterator[str]:
    path = Tokenizer.find(folder.absolute().parent / TOKENIZER_FOLDER)
    try:
        tokenizer = Tokenizer.load(path)
    except DataError as error:
        yield str(error)
        return
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        yield f"{path}: not the tokenizer that encoded {folder}"
