"""A dataset as a webdataset pipeline, for any PyTorch DataLoader. Imports webdataset when called.

The pipeline, its splitting over ranks and workers and its shuffle buffer are webdataset's. Its source is the dataset's
index instead of a list of tars (docs/decisions/0028-streams-split-by-block.md), so that blocks can be divided evenly
among any number of workers, and each is verified.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.storage.remote import BlockCache, default_folder
from xlpretrain.errors import DataError

if TYPE_CHECKING:
    import webdataset

MIXED_BLOCKS = 16
"""Size of the shuffle buffer, in blocks."""

_BLOCKS_AHEAD = 8  # per worker

Sample = dict[str, Any]


def stream(
    path: str | Path,
    *,
    seq_len: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    epoch: int = 0,
    cache_dir: str | Path | None = None,
    retry_s: float = 300.0,
) -> webdataset.FluidWrapper:
    """Stream one pass over a dataset to any PyTorch DataLoader, as a webdataset pipeline (an `IterableDataset`).

    Samples are dictionaries of

    - `__key__`: the block and the position of the sample's first token in it, such as "00000012.512"
    - `tokens`: int64 [seq_len]
    - `document_ends`: bool [seq_len], true at the last token of a document (its end-of-document token)
    - `sentence_ends`: bool [seq_len], true at the last token of a sentence

    as numpy arrays, which a DataLoader turns into tensors. The pipeline has webdataset's methods (`map`, `batched`,
    ...).

    Each block is read exactly once, by one worker of one rank, even with more workers than shards. The shares of any
    two workers or ranks differ by at most one block. Ranks are taken from `RANK` and `WORLD_SIZE`, or else from
    `torch.distributed`.

    Args:
        path: folder or URL of one split of a dataset, such as data/mine/train or https://host/mine/train.
        seq_len: tokens per sample. Samples do not cross blocks: the rest of a block, fewer than `seq_len` tokens, is
            not read (there is none if `seq_len` divides `block_tokens`). Default: whole blocks, the last of which is
            shorter.
        shuffle: permute the blocks, and shuffle the samples of about `MIXED_BLOCKS` consecutive ones.
        seed, epoch: determine the order, for a given number of ranks and workers. Every iteration has the same order;
            make a new stream with the next `epoch` for another one.
        cache_dir: cache folder for remote blocks (default: ~/.cache/xlpretrain).
        retry_s: seconds for which a failing request is retried.

    Raises:
        DataError: no such dataset, a shard that is missing or has the wrong size, or invalid arguments. While reading:
            a block that cannot be fetched.
        DamagedDataError: while reading, a block with a wrong checksum.
    """
    import webdataset

    cache = BlockCache(Path(cache_dir) if cache_dir is not None else default_folder(), retry_s=retry_s)
    for name, value in {"seed": seed, "epoch": epoch}.items():
        if value < 0:
            raise DataError(f"{name} must be 0 or more, got {value}")
    dataset = TokenDataset.open(path, cache=cache)
    length = dataset.block_tokens if seq_len is None else seq_len
    if not 1 <= length <= dataset.block_tokens:
        raise DataError(
            f"seq_len must be from 1 to {dataset.block_tokens}, the tokens of a block of this dataset, got {seq_len}; "
            "build it with a larger block_tokens for longer samples"
        )
    pipeline = webdataset.FluidWrapper(partial(_block_order, len(dataset.offsets), (seed, epoch) if shuffle else None))
    pipeline.append(webdataset.split_by_node)
    pipeline.append(webdataset.split_by_worker)
    pipeline.append(partial(_cut, dataset, length, seq_len is None))
    if shuffle and length < dataset.block_tokens:
        mixed = MIXED_BLOCKS * (dataset.block_tokens // length)
        pipeline.append(webdataset.shuffle(mixed, initial=mixed, seed=f"{seed} {epoch}"))
    pipeline.append(partial(_read, dataset))
    return pipeline


def _block_order(num_blocks: int, seed: tuple[int, int] | None) -> Iterator[int]:
    yield from range(num_blocks) if seed is None else np.random.default_rng(seed).permutation(num_blocks).tolist()


def _cut(dataset: TokenDataset, length: int, keep_short: bool, blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The ranges [start, stop) of samples, relative to the dataset's first token."""
    for block in _fetch_ahead(dataset, blocks):
        first = block * dataset.block_tokens
        end = min(first + dataset.block_tokens, dataset.num_tokens)
        for start in range(first, end, length):
            if start + length <= end or keep_short:
                yield start, min(start + length, end)


def _fetch_ahead(dataset: TokenDataset, blocks: Iterable[int]) -> Iterator[int]:
    coming: deque[int] = deque()
    for block in blocks:
        dataset.prefetch(block)
        coming.append(block)
        if len(coming) > _BLOCKS_AHEAD:
            yield coming.popleft()
    yield from coming


def _read(dataset: TokenDataset, spans: Iterable[tuple[int, int]]) -> Iterator[Sample]:
    for start, stop in spans:
        block, position = divmod(start, dataset.block_tokens)
        yield {
            "__key__": f"{block:08d}.{position}",
            "tokens": dataset.tokens(start, stop).astype(np.int64),
            "document_ends": _mask(dataset.document_ends(start, stop) - start, stop - start),
            "sentence_ends": _mask(dataset.sentence_ends(start, stop) - start, stop - start),
        }


def _mask(positions: np.ndarray, length: int) -> np.ndarray:
    mask = np.zeros(length, bool)
    mask[positions] = True
    return mask
