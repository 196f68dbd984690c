"""Evaluation samples: consecutive tokens of the held-out split, divided among streams. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from xlpretrain.data.order import hash_ints
from xlpretrain.data.samples import ELSEWHERE, EvalSamples, Sample, read_text
from xlpretrain.data.storage.dataset import TokenDataset


@dataclass(frozen=True)
class NextTokenEvalSamples(EvalSamples):
    """The first `num_tokens` tokens in `num_streams` slices of even length. Each token is a target exactly once.

    An end-of-document token precedes the corpus, so that its first token is predicted too. Only for objectives that
    predict the token after each input (span_len = new_tokens + 1).
    """

    manifest: TokenDataset
    num_tokens: int
    num_streams: int
    new_tokens: int
    mem_len: int

    covers_all_tokens: ClassVar[bool] = True

    @property
    def num_steps(self) -> int:
        """Samples in the longest slice."""
        return math.ceil(math.ceil(self.num_tokens / self.num_streams) / self.new_tokens)

    @property
    def num_clusters(self) -> int:
        """Number of documents; the last one may be incomplete."""
        return len(self._document_starts)

    def targets(self, *, step: int, stream: int) -> range:
        """The positions in the corpus of the tokens that the sample predicts."""
        first, last = slice_bounds(stream, self.num_streams, total=self.num_tokens)
        start = min(first + step * self.new_tokens, last)
        return range(start, min(start + self.new_tokens, last))

    def clusters(self, *, step: int, stream: int) -> np.ndarray:
        """The document of each target."""
        targets = self.targets(step=step, stream=stream)
        return np.searchsorted(self._document_starts, np.arange(targets.start, targets.stop), side="right") - 1

    def sample(self, *, step: int, stream: int) -> Sample:
        """The sample whose targets are `targets(step, stream)`; empty past the end of the slice."""
        targets = self.targets(step=step, stream=stream)
        start, stop = (targets.start - 1, targets.stop) if targets else (0, 0)
        remembered = min(self.mem_len, step * self.new_tokens)
        text = read_text(self.manifest, start, stop)
        return Sample(**vars(text), stream=stream, epoch=0, sample_index=targets.start, mem_valid_len=remembered)

    @cached_property
    def _document_starts(self) -> np.ndarray:
        return document_starts(self.manifest, self.num_tokens)


@dataclass(frozen=True)
class WindowEvalSamples(EvalSamples):
    """The first `num_tokens` tokens in `num_streams` slices, each read in one direction with its own memory.

    Samples advance by `new_tokens`. The last sample of a slice is the last full one of `span_len` tokens (or its only
    sample).
    """

    manifest: TokenDataset
    num_tokens: int
    num_streams: int
    span_len: int
    new_tokens: int
    mem_len: int
    seed: int = 0
    random_segment: int = 0

    @property
    def num_steps(self) -> int:
        """Samples in the longest slice."""
        longest = math.ceil(self.num_tokens / self.num_streams)
        return max(0, longest - self.span_len) // self.new_tokens + 1

    def sample(self, *, step: int, stream: int) -> Sample:
        """Sample `step` of slice `stream`; empty past its end."""
        first, last = slice_bounds(stream, self.num_streams, total=self.num_tokens)
        start = first + step * self.new_tokens
        stop = min(start + self.span_len, last)
        if step and stop - start < self.span_len:
            start = stop = first
        text = read_text(self.manifest, start, stop)
        elsewhere = None
        if self.random_segment:
            at = hash_ints(self.seed, start, ELSEWHERE) % self.num_tokens
            ends = self.manifest.sentence_ends(max(0, at - self.manifest.block_tokens), at)
            at = int(ends[-1]) + 1 if len(ends) else at
            elsewhere = read_text(self.manifest, at, min(at + self.random_segment, self.num_tokens))
        return Sample(
            **vars(text),
            stream=stream,
            epoch=0,
            sample_index=start,
            mem_valid_len=min(self.mem_len, step * self.new_tokens),
            random_segment=elsewhere,
        )


def document_starts(manifest: TokenDataset, num_tokens: int) -> np.ndarray:
    """The starts of the documents among the first `num_tokens` tokens."""
    starts = np.concatenate([[0], manifest.document_ends(0, num_tokens) + 1])
    return starts[starts < num_tokens]


def slice_bounds(stream: int, num_streams: int, *, total: int) -> tuple[int, int]:
    """The bounds [start, stop) of one stream's slice of `total` items, divided in order and evenly."""
    return stream * total // num_streams, (stream + 1) * total // num_streams
