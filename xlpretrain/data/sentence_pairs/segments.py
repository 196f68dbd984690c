"""The sentences of a block, and the greedy algorithm that cuts them into runs. Torch-free."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from xlpretrain.data.order import hash_ints
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.storage.shard_reader import TokenBlock
from xlpretrain.errors import DamagedDataError

_MEASURED_BLOCKS = 16


@dataclass(frozen=True)
class SentenceSpans:
    """The sentences of a block: start and stop (token positions), and the index of the document.

    Within a document each sentence starts where the previous one stops. End-of-document tokens belong to no sentence. A
    sentence cut off by the edge of the block counts as a sentence.
    """

    starts: np.ndarray
    stops: np.ndarray
    documents: np.ndarray

    @classmethod
    def of(cls, block: TokenBlock, *, longest: int) -> SentenceSpans:
        """The sentences of a block. Those longer than `longest` tokens are cut into even parts, which count as
        sentences.

        The originals drop the excess of long sentences.
        """
        num_tokens = len(block.tokens)
        ends = block.document_ends.astype(np.int64)
        stops = block.sentence_ends.astype(np.int64) + 1
        covered = max(int(stops[-1]) if len(stops) else 0, int(ends[-1]) + 1 if len(ends) else 0)
        if covered < num_tokens:
            stops = np.append(stops, num_tokens)
        documents = ends.searchsorted(stops - 1)
        document_starts = np.concatenate([[0], ends + 1])
        starts = np.maximum(np.concatenate([[0], stops[:-1]])[: len(stops)], document_starts[documents])

        lengths = stops - starts
        pieces = -(-lengths // longest)
        of = np.repeat(np.arange(len(lengths)), pieces)
        piece = np.arange(len(of)) - (np.cumsum(pieces) - pieces)[of]
        cuts = [starts[of] + (piece + i) * lengths[of] // pieces[of] for i in (0, 1)]
        return cls(cuts[0], cuts[1], documents[of])


@dataclass(frozen=True)
class SegmentSpans:
    """Runs of consecutive sentences of one document, sentences[first:last]. Each sentence is in one run."""

    first: np.ndarray
    last: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


def cut_segments(
    sentences: SentenceSpans, *, longest: int, short_seq_prob: float, generator: np.random.Generator
) -> SegmentSpans:
    """Cut documents into runs of up to `longest` tokens.

    The greedy algorithm of BERT (arXiv:1810.04805) and ALBERT (arXiv:1909.11942): sentences are added until the run
    reaches its target length, which is `longest` or, with probability `short_seq_prob`, uniform in 2..longest; the last
    run of a document is the rest. There are two differences. The originals add the sentence that exceeds `longest` and
    drop the excess; here that sentence begins the next run, so that every sentence is read whole. And the originals
    sample the target length once per document, not per run.
    """
    num_sentences = len(sentences.starts)
    short = generator.random(num_sentences) < short_seq_prob
    lengths = np.where(short, generator.integers(2, longest, num_sentences, endpoint=True), longest)
    wanted, starts, stops = lengths.tolist(), sentences.starts.tolist(), sentences.stops.tolist()
    document_stops = sentences.documents.searchsorted(sentences.documents, side="right").tolist()
    cuts, here = [0], 0
    while here < num_sentences:
        start, limit = starts[here], document_stops[here]
        last = min(bisect_left(stops, start + wanted[here], here, limit) + 1, limit)
        if last - here > 1 and stops[last - 1] - start > longest:
            last -= 1
        cuts.append(last)
        here = last
    return SegmentSpans(np.asarray(cuts[:-1], np.int64), np.asarray(cuts[1:], np.int64))


def count_samples(manifest: TokenDataset, *, longest: int, short_seq_prob: float) -> np.ndarray:
    """Number of samples of each block per epoch, including the short last block: about the number of its runs.

    Estimated from the index: a document with an exponentially distributed length of mean m gives 1 / (1 - exp(-a/m))
    runs of mean length a. The estimate is scaled by the number of runs in a sample of at most 16 blocks; the formula
    alone would give documents of nearly `longest` tokens 1.4 slots per run.
    """
    num_blocks = len(manifest.documents)
    fragments = manifest.documents + 1.0  # a document cut off by the edge of a block counts
    texts = np.full(num_blocks, manifest.block_tokens) - manifest.documents
    texts[manifest.num_blocks :] += manifest.tail_tokens - manifest.block_tokens
    sentence = texts.sum() / max(manifest.num_sentences, 1)
    wanted = (1 - short_seq_prob) * longest + short_seq_prob * (longest + 2) / 2 - min(sentence, longest) / 2
    formula = np.where(texts > 0, fragments / -np.expm1(-wanted * fragments / np.maximum(texts, 1)), 0.0)

    measured = np.unique(np.linspace(0, num_blocks - 1, min(_MEASURED_BLOCKS, num_blocks)).astype(np.int64))
    num_runs = 0
    measured = np.array([number for number in measured.tolist() if _is_whole(manifest, number)], np.int64)
    for number in map(int, measured):
        sentences = SentenceSpans.of(manifest.block(number), longest=longest)
        generator = np.random.Generator(np.random.Philox(key=hash_ints(number)))
        num_runs += len(cut_segments(sentences, longest=longest, short_seq_prob=short_seq_prob, generator=generator))
    scale = num_runs / formula[measured].sum() if num_runs else 1.0
    return np.where(formula > 0, np.maximum(np.rint(formula * scale), 1), 0).astype(np.int64)


def _is_whole(manifest: TokenDataset, number: int) -> bool:
    """True if a block can be read. Damaged blocks are only left out of the estimate; reading them reports the error."""
    try:
        manifest.block(number)
    except DamagedDataError:
        return False
    return True


def assign_segments(
    spans: np.ndarray, *, num_tokens: int, num_slots: int, visit: int, generator: np.random.Generator
) -> np.ndarray:
    """Assign runs to the slots of a block; returns run indices, ascending. spans: the bounds of each run, (R, 2).

    With more slots than runs, some runs are read twice, but none more often: slots beyond twice the runs stay empty,
    and the result is shorter than `num_slots`. With fewer slots, runs are left out from the third of the block given by
    `visit` mod 3, so that a sentence left out in one epoch is read in the next two, as long as it suffices to leave out
    a third of the block.
    """
    num_runs = len(spans)
    extra = num_slots - num_runs
    if extra >= 0:
        return np.sort(np.concatenate([np.arange(num_runs), generator.permutation(num_runs)[:extra]]))
    thirds = np.stack([spans[:, 0], spans[:, 1] - 1], axis=1) * 3 // num_tokens
    protected = (thirds != visit % 3).any(axis=1)
    first_out = np.argsort(protected + generator.random(num_runs), kind="stable")
    return np.sort(first_out[-extra:])
