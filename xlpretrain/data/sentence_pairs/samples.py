"""Samples for objectives that pair sentences. Documents are cut into runs of sentences again in each epoch. Torch-free.

The cost of a sample does not depend on the size of the corpus: `Shuffled` gives its block and slot, and the samples of
a block are made when the first one is read and cached while the block is in use. No sample crosses the boundary of a
document or block.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from xlpretrain.data.evaluation_samples import slice_bounds
from xlpretrain.data.order import BlockPosition, Shuffled, hash_ints
from xlpretrain.data.samples import CorpusSamples, EvalSamples, PairTarget, Sample
from xlpretrain.data.sentence_pairs.pairing import PairingRules, SentencePairs, make_pairs
from xlpretrain.data.sentence_pairs.segments import (
    SegmentSpans,
    SentenceSpans,
    assign_segments,
    count_samples,
    cut_segments,
)
from xlpretrain.data.storage.dataset import EMPTY_ENDS, TokenDataset

_CUTS, _HALVES = 2, 3  # domain separators for random choices with the same seed and epoch


class PairSamples(CorpusSamples):
    """The training samples of a run, from all blocks including the short last one.

    A block has a fixed number of slots, about as many as it has runs (`count_samples`). `sample_index` is the number of
    the sample's slot in the corpus; together with the epoch, it is the key of all random choices about the sample.
    """

    bidirectional_streams = False

    def __init__(
        self, manifest: TokenDataset, rules: PairingRules, *, num_streams: int, seed: int, shuffle_blocks: int
    ):
        """Reads up to 16 blocks. Raises `DataError` if one of them is damaged."""
        self.manifest, self.rules, self.seed = manifest, rules, seed
        self.slots = count_samples(manifest, longest=rules.max_tokens, short_seq_prob=rules.short_seq_prob)
        self.order = Shuffled(self.slots, num_streams=num_streams, seed=seed, window_blocks=shuffle_blocks)
        self._first_slots = np.cumsum(self.slots) - self.slots
        # The streams of a step may be in two windows.
        self._cached_pairs = lru_cache(2 * shuffle_blocks)(self._make_pairs)

    @property
    def num_samples(self) -> int:
        """Number of slots in the corpus."""
        return int(self.slots.sum())

    def prefetch_at(self, position: BlockPosition) -> None:
        """Start to fetch the block."""
        self.manifest.prefetch(position.block)

    def read(self, position: BlockPosition, *, stream: int, samples_read: int) -> Sample:
        """The sample of a slot; may be empty if the block has less than half as many runs as slots."""
        pairs = self.pairs(epoch=position.epoch, block=position.block)
        sample_index = int(self._first_slots[position.block]) + position.sample
        return _sample(
            self.manifest,
            position.block,
            pairs,
            position.sample,
            epoch=position.epoch,
            sample_index=sample_index,
            stream=stream,
        )

    def pairs(self, *, epoch: int, block: int) -> SentencePairs:
        """The pairs in the slots of a block in an epoch; the last slots may be empty."""
        return self._cached_pairs(epoch, block)

    def _make_pairs(self, epoch: int, block: int) -> SentencePairs:
        sentences, runs, generator = _cut(self.manifest, block, self.rules, seed=self.seed, epoch=epoch)
        chosen = assign_segments(
            np.stack([sentences.starts[runs.first], sentences.stops[runs.last - 1]], axis=1),
            num_tokens=len(self.manifest.block(block).tokens),
            num_slots=int(self.slots[block]),
            visit=epoch + block,
            generator=generator,
        )
        return make_pairs(
            sentences,
            runs,
            chosen,
            rules=self.rules,
            first_number=int(self._first_slots[block]),
            key=hash_ints(self.seed, epoch, _HALVES),
            generator=generator,
        )


class PairEvalSamples(EvalSamples):
    """One sample per run of the first `num_tokens` tokens, including the short last block; always the same ones.

    Runs are numbered in text order and divided into `num_streams` slices of even length.
    """

    def __init__(self, manifest: TokenDataset, rules: PairingRules, *, num_tokens: int, num_streams: int):
        self.manifest, self.rules = manifest, rules
        self.num_tokens, self.num_streams = num_tokens, num_streams
        self._cached_pairs = lru_cache(2 * num_streams)(self._make_pairs)

    @property
    def num_steps(self) -> int:
        """Samples in the longest slice."""
        return -(-int(self._first_runs[-1]) // self.num_streams)

    def sample(self, *, step: int, stream: int) -> Sample:
        """Sample `step` of slice `stream`; empty past its end."""
        first, last = slice_bounds(stream, self.num_streams, total=int(self._first_runs[-1]))
        number = first + step
        if number >= last:
            return _empty_sample(self.manifest, epoch=0, sample_index=number, stream=stream)
        block = int(self._first_runs.searchsorted(number, side="right")) - 1
        index = number - int(self._first_runs[block])
        return _sample(self.manifest, block, self.pairs(block), index, epoch=0, sample_index=number, stream=stream)

    @cached_property
    def _first_runs(self) -> np.ndarray:
        """The number of each block's first run, followed by the number of runs."""
        blocks = range(-(-self.num_tokens // self.manifest.block_tokens))
        counts = [len(_cut(self.manifest, block, self.rules, seed=0, epoch=0)[1]) for block in blocks]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def pairs(self, block: int) -> SentencePairs:
        """The samples of a block, one per run."""
        return self._cached_pairs(block)

    def _make_pairs(self, block: int) -> SentencePairs:
        sentences, runs, generator = _cut(self.manifest, block, self.rules, seed=0, epoch=0)
        first = int(self._first_runs[block])
        chosen = np.arange(len(runs))
        return make_pairs(
            sentences, runs, chosen, rules=self.rules, first_number=first, key=hash_ints(_HALVES), generator=generator
        )


def _cut(
    manifest: TokenDataset, block: int, rules: PairingRules, *, seed: int, epoch: int
) -> tuple[SentenceSpans, SegmentSpans, np.random.Generator]:
    """The sentences and runs of a block in an epoch, and the generator for all further random choices."""
    generator = np.random.Generator(np.random.Philox(key=hash_ints(seed, epoch, block, _CUTS)))
    sentences = SentenceSpans.of(manifest.block(block), longest=rules.max_tokens)
    runs = cut_segments(sentences, longest=rules.max_tokens, short_seq_prob=rules.short_seq_prob, generator=generator)
    return sentences, runs, generator


def _sample(
    manifest: TokenDataset, block: int, pairs: SentencePairs, index: int, *, epoch: int, sample_index: int, stream: int
) -> Sample:
    if index >= len(pairs.labels):
        return _empty_sample(manifest, epoch=epoch, sample_index=sample_index, stream=stream)
    tokens = manifest.block(block).tokens
    (start, stop), (second_start, second_stop) = pairs.segments[index].tolist()
    return Sample(
        tokens=np.concatenate([tokens[start:stop], tokens[second_start:second_stop]]),
        document_ends=EMPTY_ENDS,
        sentence_ends=EMPTY_ENDS,
        stream=stream,
        epoch=epoch,
        sample_index=sample_index,
        pair_target=PairTarget(split=stop - start, label=int(pairs.labels[index])),
    )


def _empty_sample(manifest: TokenDataset, *, epoch: int, sample_index: int, stream: int) -> Sample:
    tokens = np.empty(0, manifest.dtype)
    return Sample(
        tokens,
        EMPTY_ENDS,
        EMPTY_ENDS,
        stream=stream,
        epoch=epoch,
        sample_index=sample_index,
        pair_target=PairTarget(split=0, label=-1),
    )
