"""Samples: the tokens that a stream reads at a training step. Torch-free.

Samples here are consecutive tokens; objectives that pair sentences use `sentence_pairs`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xlpretrain.data.order import BlockPosition, BlockVisit, Contiguous, Order, Shuffled, hash_ints
from xlpretrain.data.storage.dataset import EMPTY_ENDS, TokenDataset

ELSEWHERE = 1  # domain separator for the random choice of `random_segment`


@dataclass(frozen=True)
class TokenSpan:
    """Consecutive tokens in reading direction.

    document_ends, sentence_ends: positions of the last tokens of documents and sentences, in reading direction.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    sentence_ends: np.ndarray


@dataclass(frozen=True)
class PairTarget:
    """The division of a sample's tokens into two parts, and its label.

    split: start of the second part; the number of tokens if there is none.
    label: target of a sentence task: 0 if the second part follows the first, 1 if not; -1 for no target.
    """

    split: int
    label: int


@dataclass(frozen=True)
class Example:
    """An example of a task: texts and what a model should say about them.

    parts: token ids of each text. target: as the file has it or, once the task has numbered it, an array-like of
        numbers; None for no target. number: index in the file. offset: for a window of a long text, the index of its
        first token in the text. weights: weight of the target in the training loss, or of each target; None: 1.
    """

    parts: tuple[Sequence[int], ...]
    target: Any = None
    number: int = 0
    offset: int = 0
    weights: Any = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all texts."""
        return sum(map(len, self.parts))


@dataclass(frozen=True)
class Sample(TokenSpan):
    """One sample of one stream.

    tokens: at most the objective's `span_len`; shorter only at the end of a block or the corpus (the collator pads),
        empty for a stream that has nothing left to read.
    epoch, sample_index: together with the run's seed, the key of every random choice about this sample.
    mem_valid_len: number of memory positions that belong to this sample's past; the model masks the others.
    reversed: True if the text is read backwards.
    random_segment: text from a random position in the same block, starting at a sentence; only if the objective
        requires it.
    pair_target: only for objectives that pair sentences. example: only for tasks. part: index of the group of streams.
    """

    stream: int
    epoch: int
    sample_index: int
    mem_valid_len: int = 0
    reversed: bool = False
    random_segment: TokenSpan | None = None
    pair_target: PairTarget | None = None
    example: Example | None = None
    part: int = 0


def empty_sample(stream: int) -> Sample:
    """A sample without tokens."""
    nothing = np.empty(0, np.uint16)
    return Sample(
        nothing,
        EMPTY_ENDS,
        EMPTY_ENDS,
        stream=stream,
        epoch=0,
        sample_index=0,
        pair_target=PairTarget(split=0, label=-1),
        example=Example(([],)),
    )


class MicroBatchSamples(list[Sample]):
    """The samples of a micro-batch. part: the group of its streams, known where there are no samples, too."""

    def __init__(self, samples: Iterable[Sample], part: int):
        super().__init__(samples)
        self.part = part


class SampleSource(ABC):
    """A source of samples, each a pure function of step and stream."""

    @abstractmethod
    def sample(self, *, step: int, stream: int) -> Sample:
        """The sample that `stream` reads at `step`. Raises `DataError` if the shard is damaged."""

    def prefetch(self, *, step: int, stream: int) -> None:
        """Start to fetch the blocks of a sample if they are remote; does not block."""
        return

    @property
    def is_remote(self) -> bool:
        """True if prefetching helps."""
        return False

    @property
    def corpora(self) -> Sequence[str]:
        """Names of the corpora of a mixture; empty for a single dataset."""
        return ()

    def corpus(self, *, step: int, stream: int) -> int:
        """Index of a sample's corpus."""
        return 0

    def part(self, stream: int) -> int:
        """Index of the group that a stream belongs to."""
        return 0


class TrainSamples(SampleSource):
    """Training samples; they never end."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> float:
        """Number of steps that read as many samples as the data have."""

    @property
    def groups(self) -> Sequence[TrainSamples]:
        """The samples of each group of streams; itself if there is one."""
        return (self,)

    def passes(self, step: int) -> float:
        """Passes over the data after `step` data steps."""
        return step / self.steps_per_epoch

    def with_windows(self, windows: Sequence[tuple[int, int]]) -> TrainSamples:
        """The same samples when data steps are skipped: stages begin at the same training steps nevertheless."""
        return self

    def skipped_tokens(self, stage: int) -> int:
        """Tokens that are never read in their epoch because of the change to a stage."""
        return 0

    def epochs(self, step: int) -> Mapping[str, float]:
        """Passes over each corpus of a mixture after `step` data steps; empty for a single dataset."""
        return {}


class EvalSamples(SampleSource):
    """Evaluation samples; streams give empty samples past their end.

    Predictions within a text are not independent, so standard errors are computed over texts ("clusters"). By default
    every sample is one cluster.
    """

    num_streams: int

    covers_all_tokens: ClassVar[bool] = False
    """True if each token is predicted exactly once, so that bits per byte can be computed."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Samples in the longest stream."""

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return self.num_steps * self.num_streams

    def clusters(self, *, step: int, stream: int) -> np.ndarray:
        """The cluster index of each prediction of the sample, or a single one for all of them."""
        return np.asarray([step * self.num_streams + stream])


class CorpusSamples(TrainSamples):
    """The training samples of one corpus, alone or as a part of a mixture."""

    manifest: TokenDataset
    order: Order
    bidirectional_streams: bool
    """True if streams 2k and 2k + 1 share the visits of the order's stream k, with the second one reading backwards."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Upper bound (exclusive) of `sample_index`."""

    @abstractmethod
    def read(self, position: BlockPosition, *, stream: int, samples_read: int) -> Sample:
        """The sample at a position. samples_read: samples of the same visit that the stream has read before."""

    def sample(self, *, step: int, stream: int) -> Sample:
        """The sample that `stream` reads at `step`."""
        visit = self.visit(step=step, stream=stream)
        return self.read(self.order.at(visit.number, visit.sample), stream=stream, samples_read=visit.samples_read)

    @abstractmethod
    def prefetch_at(self, position: BlockPosition) -> None:
        """Start to fetch the blocks of the sample at a position."""

    def prefetch(self, *, step: int, stream: int) -> None:
        """Start to fetch the blocks of a sample."""
        visit = self.visit(step=step, stream=stream)
        self.prefetch_at(self.order.at(visit.number, visit.sample))

    @property
    def is_remote(self) -> bool:
        """True if the corpus is remote."""
        return self.manifest.remote is not None

    def visit(self, *, step: int, stream: int) -> BlockVisit:
        """The visit of `stream` at a step."""
        return self.order.visit(step=step, stream=stream // 2 if self.bidirectional_streams else stream)

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps that read as many samples as the corpus has."""
        return self.order.steps_per_epoch


@dataclass(frozen=True)
class StreamSamples(CorpusSamples):
    """Samples of consecutive tokens from full blocks; a short last block is never read.

    A sample has `new_tokens` new tokens (fewer at the end of a block, if they do not divide it) and the `span_len -
    new_tokens` tokens after them, which may belong to the next block of the corpus.

    With `bidirectional_streams`, streams 2k and 2k + 1 visit the same blocks, and the second one reads each backwards,
    from its last token to its first (XLNet's `bi_data`).
    """

    manifest: TokenDataset
    order: Order
    block_tokens: int
    span_len: int
    new_tokens: int
    mem_len: int
    seed: int
    bidirectional_streams: bool = False
    random_segment: int = 0
    needs_boundaries: bool = True

    @classmethod
    def of(
        cls,
        manifest: TokenDataset,
        *,
        window: int,
        stride: int,
        mem_len: int,
        num_streams: int,
        seed: int,
        shuffle_blocks: int,
        block_tokens: int | None = None,
        both_ways: bool = False,
        elsewhere: int = 0,
        ends: bool = True,
    ) -> StreamSamples:
        """The samples of a run, in `Contiguous` order with a memory and in `Shuffled` order without.

        window, stride, both_ways: see `span_len`, `new_tokens` and `bidirectional_streams`. block_tokens: read blocks
        in parts of this size, which divides theirs. elsewhere: length of `random_segment`. ends: include document and
        sentence ends, which takes longer than all the rest.
        """
        block_tokens = block_tokens or manifest.block_tokens
        num_blocks = manifest.num_blocks * (manifest.block_tokens // block_tokens)
        samples_per_block = math.ceil(block_tokens / stride)
        num_orders = num_streams // 2 if both_ways else num_streams
        order: Order
        if mem_len:
            order = Contiguous(num_blocks, samples_per_block, num_orders, seed)
        else:
            samples_of_block = np.full(num_blocks, samples_per_block)
            order = Shuffled(samples_of_block, num_streams=num_orders, seed=seed, window_blocks=shuffle_blocks)
        return cls(manifest, order, block_tokens, window, stride, mem_len, seed, both_ways, elsewhere, ends)

    @property
    def samples_per_block(self) -> int:
        """Samples per block."""
        return math.ceil(self.block_tokens / self.new_tokens)

    @property
    def num_samples(self) -> int:
        """Number of samples in the corpus, counting both directions if both are read."""
        blocks = self.manifest.num_blocks * (self.manifest.block_tokens // self.block_tokens)
        return blocks * self.samples_per_block * (2 if self.bidirectional_streams else 1)

    def prefetch_at(self, position: BlockPosition) -> None:
        """Start to fetch the block, and its neighbours if the sample extends into them."""
        begin, offset = position.block * self.block_tokens, position.sample * self.new_tokens
        reads = [begin, begin + offset + self.span_len]
        if self.bidirectional_streams:
            reads.append(begin + self.block_tokens - offset - self.span_len - 1)
        for first in reads:
            if 0 <= first < self.manifest.num_tokens:
                self.manifest.prefetch(first // self.manifest.block_tokens)

    def read(self, position: BlockPosition, *, stream: int, samples_read: int) -> Sample:
        """The sample at a position. samples_read: samples of the same block that the stream has read before."""
        reverse = self.bidirectional_streams and stream % 2 == 1
        sample_index = position.block * self.samples_per_block + position.sample
        sample_index = 2 * sample_index + reverse if self.bidirectional_streams else sample_index

        block_tokens = self.block_tokens
        offset = position.sample * self.new_tokens
        length = min(self.new_tokens, block_tokens - offset) + self.span_len - self.new_tokens
        begin, end = position.block * block_tokens, (position.block + 1) * block_tokens
        start, stop = (end - offset - length, end - offset) if reverse else (begin + offset, begin + offset + length)
        if self.needs_boundaries or reverse:
            text = read_text(self.manifest, start, stop, reverse=reverse)
        else:
            text = TokenSpan(self.manifest.tokens(start, min(stop, self.manifest.num_tokens)), EMPTY_ENDS, EMPTY_ENDS)
        elsewhere = None
        if self.random_segment:
            key = hash_ints(self.seed, position.epoch, sample_index, ELSEWHERE)
            elsewhere = self._read_elsewhere(begin, end, key=key, reverse=reverse)
        return Sample(
            text.tokens,
            text.document_ends,
            text.sentence_ends,
            stream,
            position.epoch,
            sample_index,
            min(self.mem_len, samples_read * self.new_tokens),
            reverse,
            elsewhere,
        )

    def _read_elsewhere(self, begin: int, end: int, *, key: int, reverse: bool) -> TokenSpan:
        """Up to `random_segment` tokens of [begin, end), from the start of a random token's sentence."""
        at = begin + key % (end - begin)
        if reverse:
            last = self.manifest.first_sentence_end(at, end)
            stop = end if last is None else last + 1
            return read_text(self.manifest, max(stop - self.random_segment, begin), stop, reverse=True)
        before = self.manifest.last_sentence_end(begin, at)
        start = begin if before is None else before + 1
        return read_text(self.manifest, start, min(start + self.random_segment, end), reverse=False)


def read_text(manifest: TokenDataset, start: int, stop: int, *, reverse: bool = False) -> TokenSpan:
    """The tokens at [start, stop), clipped to the dataset; start = -1 prepends an end-of-document token.

    reverse: read backwards, so that a sentence ends at its first token.
    """
    stop = min(stop, manifest.num_tokens)
    first = max(start, 0)
    tokens = manifest.tokens(first, stop)
    if reverse:
        before, last = max(first - 1, 0), max(stop - 1, first - 1, 0)
        ends = manifest.document_ends(before, last), manifest.sentence_ends(before, last)
        documents, sentences = (stop - 2 - e[::-1] for e in ends)
        return TokenSpan(tokens[::-1], documents, sentences)
    if start < 0:
        tokens = np.concatenate([np.asarray([manifest.vocabulary.eod], tokens.dtype), tokens])
    return TokenSpan(tokens, manifest.document_ends(first, stop) - start, manifest.sentence_ends(first, stop) - start)
