"""Streams: the tokens that a stream reads at a step of training. Torch-free.

Objectives whose rows are consecutive tokens use what is here; those that pair sentences use `pairs`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xlpretrain.data.order import BlockPosition, BlockVisit, Contiguous, Order, Shuffled, hash_ints
from xlpretrain.data.storage.dataset import EMPTY_ENDS, TokenDataset

ELSEWHERE = 1  # sets its draw apart from the others of the same row


@dataclass(frozen=True)
class TokenSpan:
    """Consecutive tokens, in the direction in which they are read.

    document_ends, sentence_ends: positions whose token is the last, as read, of a document or a sentence.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    sentence_ends: np.ndarray


@dataclass(frozen=True)
class PairTarget:
    """How the tokens of a row fall into two parts.

    split: where the second begins; the number of tokens if there is none.
    label: what a sentence task asks for: 0 the second part follows the first, 1 it does not; -1 nothing.
    """

    split: int
    label: int


@dataclass(frozen=True)
class Sample(TokenSpan):
    """One row of one stream: a window of tokens and where it stands.

    tokens: at most the objective's window; shorter only where a block or the corpus ends (the collator pads), empty
        for a stream that has nothing left to read.
    epoch, sample: with the run's seed, the key of every random choice made about this row.
    remembered: how many memory positions are this row's own past; the model masks the others.
    reverse: whether the text is read from its end.
    elsewhere: text from a random place of the same block, beginning with a sentence, for objectives that ask for it.
    pair: for objectives that pair sentences.
    """

    stream: int
    epoch: int
    sample_index: int
    mem_valid_len: int = 0
    reversed: bool = False
    random_segment: TokenSpan | None = None
    pair_target: PairTarget | None = None


def empty_sample(stream: int) -> Sample:
    """A row without tokens."""
    nothing = np.empty(0, np.uint16)
    return Sample(
        nothing,
        EMPTY_ENDS,
        EMPTY_ENDS,
        stream=stream,
        epoch=0,
        sample_index=0,
        pair_target=PairTarget(split=0, label=-1),
    )


class SampleSource(ABC):
    """Where rows come from: a pure function of step and stream."""

    @abstractmethod
    def row(self, *, step: int, stream: int) -> Sample:
        """What `stream` reads at `step`. Raises `DataError` if the shard is damaged."""

    def prefetch(self, *, step: int, stream: int) -> None:
        """Let what the row needs be fetched, if it lies behind a URL; returns at once."""
        return

    @property
    def is_remote(self) -> bool:
        """Whether there is anything to prefetch."""
        return False

    @property
    def corpora(self) -> Sequence[str]:
        """The names of the corpora of a mixture; none of a single dataset."""
        return ()

    def corpus(self, *, step: int, stream: int) -> int:
        """The number of a row's corpus."""
        return 0


class TrainSamples(SampleSource):
    """Rows without end."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> float:
        """Steps in which as many rows are read as there are."""

    def epochs(self, step: int) -> Mapping[str, float]:
        """Passes over each corpus of a mixture after `step` steps of the data; empty for a single dataset."""
        return {}


class EvalSamples(SampleSource):
    """Rows that come to an end. Streams past theirs give empty rows.

    Predictions of one text are not independent of each other: standard errors are computed over texts, here "clusters".
    Unless a class says otherwise, every row is a text of its own.
    """

    num_streams: int

    covers_all_tokens: ClassVar[bool] = False
    """Whether each token is predicted exactly once, so that bits per byte mean something."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Rows in the longest stream."""

    @property
    def num_clusters(self) -> int:
        """How many texts there are."""
        return self.num_steps * self.num_streams

    def clusters(self, *, step: int, stream: int) -> np.ndarray:
        """For each prediction of the row, or for all of them at once, the number of the text that it belongs to."""
        return np.asarray([step * self.num_streams + stream])


class CorpusSamples(TrainSamples):
    """The rows of a run that reads one corpus, or of its part of a mixture."""

    manifest: TokenDataset
    order: Order
    bidirectional_streams: bool
    """Whether streams 2k and 2k + 1 share the turns of the order's stream k, the second reading from the other end."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Rows' `sample` is below this."""

    @abstractmethod
    def read(self, place: BlockPosition, *, stream: int, behind: int) -> Sample:
        """The row at a place; its stream has read `behind` rows of the same turn before."""

    def row(self, *, step: int, stream: int) -> Sample:
        """What `stream` reads at `step`."""
        turn = self.turn(step=step, stream=stream)
        return self.read(self.order.at(turn.number, turn.row), stream=stream, behind=turn.behind)

    @abstractmethod
    def prefetch_at(self, place: BlockPosition) -> None:
        """Let the row at a place be fetched."""

    def prefetch(self, *, step: int, stream: int) -> None:
        """Let what the row needs be fetched."""
        turn = self.turn(step=step, stream=stream)
        self.prefetch_at(self.order.at(turn.number, turn.row))

    @property
    def is_remote(self) -> bool:
        """Whether the corpus lies behind a URL."""
        return self.manifest.remote is not None

    def turn(self, *, step: int, stream: int) -> BlockVisit:
        """What `stream` is at."""
        return self.order.turn(step=step, stream=stream // 2 if self.bidirectional_streams else stream)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which as many rows are read as the corpus has."""
        return self.order.steps_per_epoch


@dataclass(frozen=True)
class StreamSamples(CorpusSamples):
    """Rows of whole blocks; a last short block is never read.

    A row has `stride` new tokens (fewer at a block's end, if the stride does not divide it) and the `window - stride`
    tokens after them, which may belong to the block that follows in the corpus.

    With `both_ways`, streams 2k and 2k + 1 read the same rows, the second from the other end: each its block
    backwards, from its last token to its first (XLNet's `bi_data`).
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
        """The rows of a run: in the order of `Contiguous` if there is a memory, else in that of `Shuffled`.

        block_tokens: read blocks as if they were so small; it divides their size. elsewhere: how many tokens of text
        from elsewhere each row needs. ends: whether rows say where documents and sentences end, which takes longer than
        all the rest.
        """
        block_tokens = block_tokens or manifest.block_tokens
        num_blocks = manifest.num_blocks * (manifest.block_tokens // block_tokens)
        rows_per_block = math.ceil(block_tokens / stride)
        num_orders = num_streams // 2 if both_ways else num_streams
        order: Order
        if mem_len:
            order = Contiguous(num_blocks, rows_per_block, num_orders, seed)
        else:
            rows_of_block = np.full(num_blocks, rows_per_block)
            order = Shuffled(rows_of_block, num_streams=num_orders, seed=seed, window_blocks=shuffle_blocks)
        return cls(manifest, order, block_tokens, window, stride, mem_len, seed, both_ways, elsewhere, ends)

    @property
    def rows_per_block(self) -> int:
        """Rows in a block."""
        return math.ceil(self.block_tokens / self.new_tokens)

    @property
    def num_samples(self) -> int:
        """Rows in the corpus, in both directions if both are read."""
        blocks = self.manifest.num_blocks * (self.manifest.block_tokens // self.block_tokens)
        return blocks * self.rows_per_block * (2 if self.bidirectional_streams else 1)

    def prefetch_at(self, place: BlockPosition) -> None:
        """The block, and its neighbours for rows that go on into them."""
        begin, offset = place.block * self.block_tokens, place.row * self.new_tokens
        positions = [begin, begin + offset + self.span_len]
        if self.bidirectional_streams:
            positions.append(begin + self.block_tokens - offset - self.span_len - 1)
        for position in positions:
            if 0 <= position < self.manifest.num_tokens:
                self.manifest.prefetch(position // self.manifest.block_tokens)

    def read(self, place: BlockPosition, *, stream: int, behind: int) -> Sample:
        """The row at a place; its stream has read `behind` rows of the same block before."""
        reverse = self.bidirectional_streams and stream % 2 == 1
        sample = place.block * self.rows_per_block + place.row
        sample = 2 * sample + reverse if self.bidirectional_streams else sample

        block_tokens = self.block_tokens
        offset = place.row * self.new_tokens
        length = min(self.new_tokens, block_tokens - offset) + self.span_len - self.new_tokens
        begin, end = place.block * block_tokens, (place.block + 1) * block_tokens
        start, stop = (end - offset - length, end - offset) if reverse else (begin + offset, begin + offset + length)
        if self.needs_boundaries or reverse:
            text = read_text(self.manifest, start, stop, reverse=reverse)
        else:
            text = TokenSpan(self.manifest.tokens(start, min(stop, self.manifest.num_tokens)), EMPTY_ENDS, EMPTY_ENDS)
        elsewhere = None
        if self.random_segment:
            key = hash_ints(self.seed, place.epoch, sample, ELSEWHERE)
            elsewhere = self._read_elsewhere(begin, end, key=key, reverse=reverse)
        return Sample(
            text.tokens,
            text.document_ends,
            text.sentence_ends,
            stream,
            place.epoch,
            sample,
            min(self.mem_len, behind * self.new_tokens),
            reverse,
            elsewhere,
        )

    def _read_elsewhere(self, begin: int, end: int, *, key: int, reverse: bool) -> TokenSpan:
        """Up to `elsewhere` tokens of [begin, end), from the beginning of a random token's sentence on."""
        at = begin + key % (end - begin)
        if reverse:
            last = self.manifest.first_sentence_end(at, end)
            stop = end if last is None else last + 1
            return read_text(self.manifest, max(stop - self.random_segment, begin), stop, reverse=True)
        before = self.manifest.last_sentence_end(begin, at)
        start = begin if before is None else before + 1
        return read_text(self.manifest, start, min(start + self.random_segment, end), reverse=False)


def read_text(manifest: TokenDataset, start: int, stop: int, *, reverse: bool = False) -> TokenSpan:
    """The tokens at [start, stop), as far as there are any; an end-of-document symbol stands before the first.

    A sentence read backwards ends with what is its first token.
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
