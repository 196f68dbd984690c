"""Streams: the tokens that a stream reads at a step, in training and in evaluation. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from xlpretrain.data.manifest import Manifest
from xlpretrain.data.order import Contiguous


@dataclass(frozen=True)
class Row:
    """One row of one stream: a window of tokens and where it stands.

    tokens: at most the objective's window; shorter only where a block or the corpus ends (the collator pads), empty
        for a stream that has nothing left to read.
    document_ends, sentence_ends: positions in the window whose token is the last of a document or a sentence.
    epoch, sample: with the run's seed, the key of every random choice made about this row.
    remembered: how many memory positions are this row's own past; the model masks the others.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    sentence_ends: np.ndarray
    stream: int
    epoch: int
    sample: int
    remembered: int


class Rows(Protocol):
    """Where rows come from: a pure function of step and stream."""

    def row(self, *, step: int, stream: int) -> Row:
        """What `stream` reads at `step`. Raises `DataError` if the shard is damaged."""


@dataclass(frozen=True)
class TrainingRows:
    """Rows of whole blocks in the order of `Contiguous`; a last short block is never read.

    A row has `stride` new tokens (fewer at a block's end, if the stride does not divide it) and the `window - stride`
    tokens after them, which may belong to the block that follows in the corpus.
    """

    manifest: Manifest
    order: Contiguous
    window: int
    stride: int
    mem_len: int

    @classmethod
    def of(
        cls, manifest: Manifest, *, window: int, stride: int, mem_len: int, num_streams: int, seed: int
    ) -> TrainingRows:
        """The rows of a run."""
        rows_per_block = math.ceil(manifest.block_tokens / stride)
        order = Contiguous(manifest.num_blocks, rows_per_block, num_streams, seed)
        return cls(manifest, order, window, stride, mem_len)

    def row(self, *, step: int, stream: int) -> Row:
        """What `stream` reads at `step`."""
        place = self.order.place(step=step, stream=stream)
        offset = place.row * self.stride
        length = min(self.stride, self.manifest.block_tokens - offset) + self.window - self.stride
        start = place.block * self.manifest.block_tokens + offset
        behind = self.order.rows_behind(step=step, stream=stream)
        return _read(
            self.manifest,
            start,
            start + length,
            stream=stream,
            epoch=place.epoch,
            sample=place.block * self.order.rows_per_block + place.row,
            remembered=min(self.mem_len, behind * self.stride),
        )


@dataclass(frozen=True)
class EvaluationRows:
    """The first `num_tokens` tokens, cut into `num_streams` slices of even length, each token a target exactly once.

    The corpus is preceded by an end-of-document symbol, so that its first token is predicted too. Only for objectives
    that predict the token after each input (window = stride + 1).
    """

    manifest: Manifest
    num_tokens: int
    num_streams: int
    stride: int
    mem_len: int

    @property
    def num_steps(self) -> int:
        """Rows in the longest slice."""
        return math.ceil(math.ceil(self.num_tokens / self.num_streams) / self.stride)

    def targets(self, *, step: int, stream: int) -> range:
        """The positions in the corpus that the row predicts."""
        first = stream * self.num_tokens // self.num_streams
        last = (stream + 1) * self.num_tokens // self.num_streams
        start = min(first + step * self.stride, last)
        return range(start, min(start + self.stride, last))

    def row(self, *, step: int, stream: int) -> Row:
        """The row whose targets are `targets(step, stream)`; empty past the end of the slice."""
        targets = self.targets(step=step, stream=stream)
        start, stop = (targets.start - 1, targets.stop) if targets else (0, 0)
        remembered = min(self.mem_len, step * self.stride)
        return _read(self.manifest, start, stop, stream=stream, epoch=0, sample=targets.start, remembered=remembered)


def _read(manifest: Manifest, start: int, stop: int, *, stream: int, epoch: int, sample: int, remembered: int) -> Row:
    stop = min(stop, manifest.num_tokens)
    first = max(start, 0)
    tokens = manifest.tokens(first, stop)
    if start < 0:
        tokens = np.concatenate([np.asarray([manifest.vocabulary.eod], tokens.dtype), tokens])
    return Row(
        tokens=tokens,
        document_ends=manifest.document_ends(first, stop) - start,
        sentence_ends=manifest.sentence_ends(first, stop) - start,
        stream=stream,
        epoch=epoch,
        sample=sample,
        remembered=remembered,
    )
