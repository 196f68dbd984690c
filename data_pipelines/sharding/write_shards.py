"""The last stage of a build: writes blocks of tokens to tars that `webdataset` can stream, and their index."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from data_pipelines.sharding.claims import INDEX, TOKENIZER_FOLDER
from data_pipelines.stages import encode
from data_pipelines.stages.encode import encoded_run, tokenizer_of, tokenizer_path
from data_pipelines.stages.splits import SplitKey, groups
from data_pipelines.stages.work_dir import Stage, WorkDir
from data_pipelines.tokenizing.encode import EncodedDocuments, EncodedStream, choose_block_tokens
from data_pipelines.tokenizing.word_encoder import token_dtype
from xlpretrain.data.storage.dataset import SCHEMA_VERSION, add_checksum
from xlpretrain.data.storage.shard_reader import ENDS_DTYPE, MEMBERS, TAR_BLOCK, member_name
from xlpretrain.errors import DataError
from xlpretrain.file_system.atomic_files import atomic_write, atomic_writer, fsync

NAME = "write"
COLUMNS = ("offset", "crc32", "documents", "sentences", "source_bytes")
_HEADER_BYTES = 128  # of a .npy


@dataclass(frozen=True)
class ShardPlan:
    """The blocks [first, last) of a group to write to one shard."""

    group: SplitKey
    number: int
    first: int
    last: int
    block_tokens: int
    num_tokens: int

    @property
    def name(self) -> str:
        """The shard's file name."""
        return f"shard-{self.number:05d}.tar"


def plan_shards(work: WorkDir) -> list[ShardPlan]:
    """All shards of a build, of about `shard_bytes` each. Raises `DataError` if a group has no documents left."""
    counts, config = work.counts(encode.NAME), work.config
    itemsize = token_dtype(tokenizer_of(work).vocabulary.size).itemsize
    shards = []
    for group in groups(config):
        num_tokens = counts[f"tokens in {group.folder}"]
        if not num_tokens:
            raise DataError(
                f"no document is left in {group.folder}: cleaning removed all of them, or the tokenizer encodes them to"
                " no tokens"
            )
        training = counts[f"tokens in {SplitKey(group.corpus, 'train').folder}"]
        block_tokens = config.block_tokens or choose_block_tokens(training)
        num_blocks = -(-num_tokens // block_tokens)
        ends = encoded_run(work, group).num_ends * ENDS_DTYPE.itemsize // num_blocks
        block_bytes = block_tokens * itemsize + ends + len(MEMBERS) * (TAR_BLOCK + _HEADER_BYTES + TAR_BLOCK // 2)
        each = max(-(-config.shard_bytes // block_bytes), 1)
        for number, first in enumerate(range(0, num_blocks, each)):
            last = min(first + each, num_blocks)
            shards.append(ShardPlan(group, number, first, last, block_tokens, num_tokens))
    return shards


def sizes(work: WorkDir) -> list[int]:
    """Bytes of tokens in each shard."""
    return [2 * shard.block_tokens * (shard.last - shard.first) for shard in plan_shards(work)]


def run(work: WorkDir, task: int) -> None:
    """Write one shard to the dataset, and its index entry to the task's output. Raises OSError."""
    shard = plan_shards(work)[task]
    folder = work.dataset / shard.group.folder
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[int]] = {name: [] for name in COLUMNS}
    tokens = encoded_run(work, shard.group)
    with work.task_output(NAME, task) as output:
        with atomic_writer(folder / shard.name) as temporary:
            # webdataset's tar writer gives the same bytes, but imports torch.
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number in range(shard.first, shard.last):
                    _write_block(tar, tokens, number, shard, columns)
            members = len(MEMBERS) * len(columns["offset"])
            entry = {"name": shard.name, **_seal(temporary), "num_members": members, **columns}
        fsync(folder)  # the shard must be on disk before the task counts as done
        (output / "shard.json").write_text(json.dumps(entry, sort_keys=True))


def write_indexes(work: WorkDir, built_from: Mapping[str, Any]) -> None:
    """Write the index of every group and the tokenizer. Raises OSError."""
    counts, tokenizer = work.counts(encode.NAME), tokenizer_of(work)
    shards = plan_shards(work)
    for group in groups(work.config):
        own = [number for number, shard in enumerate(shards) if shard.group == group]
        first = shards[own[0]]
        index = {
            "schema_version": SCHEMA_VERSION,
            "num_tokens": first.num_tokens,
            "block_tokens": first.block_tokens,
            "tail_tokens": first.num_tokens % first.block_tokens,
            "dtype": token_dtype(tokenizer.vocabulary.size).name,
            "num_unknown": counts[f"unknown in {group.folder}"],
            "vocabulary": asdict(tokenizer.vocabulary),
            "tokenizer_sha256": tokenizer.sha256,
            "built_from": built_from,
            "shards": [json.loads((work.output(NAME, number) / "shard.json").read_text()) for number in own],
        }
        atomic_write(work.dataset / group.folder / INDEX, add_checksum(index))
    for corpus in dict.fromkeys(group.corpus for group in groups(work.config)):
        folder = work.dataset / corpus / TOKENIZER_FOLDER
        folder.mkdir(exist_ok=True)
        copy = folder / tokenizer.file_name
        shutil.copyfile(tokenizer_path(work), copy)
        fsync(copy)


def _write_block(
    tar: tarfile.TarFile, run: EncodedStream, number: int, shard: ShardPlan, columns: Mapping[str, list[int]]
) -> None:
    start = number * shard.block_tokens
    block: EncodedDocuments = run.slice(start, min(start + shard.block_tokens, run.num_tokens))
    arrays = {
        "doc": block.document_ends.astype(ENDS_DTYPE),
        "sent": block.sentence_ends.astype(ENDS_DTYPE),
        "tok": block.tokens,
    }
    row = {"offset": tar.offset, "crc32": 0, "documents": len(arrays["doc"]), "sentences": len(arrays["sent"])}
    row["source_bytes"] = int(block.text_bytes.sum())
    for member in MEMBERS:
        data = _npy_bytes(arrays[member])
        row["crc32"] = zlib.crc32(data, row["crc32"])
        info = tarfile.TarInfo(member_name(number, member))
        info.size, info.mode, info.mtime = len(data), 0o444, 0
        tar.addfile(info, io.BytesIO(data))
    for name in COLUMNS:
        columns[name].append(row[name])


def _npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    npy.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return {"num_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


STAGE = Stage(NAME, "Writing", sizes, run)
