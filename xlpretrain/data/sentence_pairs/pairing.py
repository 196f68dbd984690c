"""Makes pairs of parts from runs of sentences, for sentence order and next sentence prediction. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xlpretrain.data.order import hash_array
from xlpretrain.data.sentence_pairs.matched_pairs import cut_in_groups, settle
from xlpretrain.data.sentence_pairs.segments import SegmentSpans, SentenceSpans


@dataclass(frozen=True)
class PairingRules:
    """The rules for making samples from sentences.

    max_tokens: maximum length of both parts together. task: the sentence task. single_sentence: treatment of runs of
    one sentence in sentence order. nsp_pairs: how next sentence prediction finds second parts in other documents.
    short_seq_prob: probability of a shorter target length.
    """

    max_tokens: int
    task: Literal["sop", "nsp", "none"] = "sop"
    single_sentence: Literal["original", "skip", "split"] = "split"
    nsp_pairs: Literal["matched", "exchanged"] = "matched"
    short_seq_prob: float = 0.1


@dataclass(frozen=True)
class SentencePairs:
    """The samples of a block. segments: start and stop of both parts in reading order, (S, 2, 2); the second part may
    be empty. labels: as in `PairTarget`, (S,)."""

    segments: np.ndarray
    labels: np.ndarray


def make_pairs(
    sentences: SentenceSpans,
    runs: SegmentSpans,
    chosen: np.ndarray,
    *,
    rules: PairingRules,
    first_number: int,
    key: int,
    generator: np.random.Generator,
) -> SentencePairs:
    """Make a sample from each run in `chosen` (ascending, each at most twice).

    A run of n sentences is cut after its first k, with k uniform in 1..n-1. Then, by task:

    sop (ALBERT): exactly half of the samples are swapped, one of each two consecutive ones, by their number in the
    corpus (`first_number` is that of the first). A run of one sentence is cut anywhere (`split`); has one part and no
    label (`skip`); or, as in ALBERT's code (`original`), gets a second part from another document, and label 1.

    nsp (BERT): half of the samples get their second part from another document. BERT samples that part and puts the
    true one back into the text; here these samples exchange their second parts, so that every sentence is still read.
    If a block contains one document only, the second part is another part of it.
    `matched`: samples exchange second parts of the same length, cut before the labels are chosen (`matched_pairs`), so
    that the lengths are independent of the label. A run of one sentence is cut inside the sentence.
    `exchanged`, for runs started with it: half of the samples, chosen as for sop, are cut again for the exchange, and a
    run of one sentence always gets its second part from another document. At 128 tokens a classifier of the two lengths
    then has an accuracy of 63.6 %, where the majority label has 56.0 %.

    none: one part.

    Samples that become too long by an exchange are truncated as in the originals, see `_truncate`.
    """
    if rules.task == "nsp" and rules.nsp_pairs == "matched":
        parts, groups = cut_in_groups(sentences, runs, chosen, generator)
        return _exchange_in_groups(parts, groups, _choose_half(len(groups), first_number // 2, key))
    parts = _cut_in_two(sentences, runs, chosen, rules=rules, generator=generator)
    labels = np.full(len(chosen), -1)
    if rules.task == "none":
        return SentencePairs(parts, labels)
    two = parts[:, 1, 0] < parts[:, 1, 1]
    labels[two] = _choose_half(int(two.sum()), first_number, key)
    documents = sentences.documents[runs.first[chosen]]
    whole = parts.copy()
    if rules.task == "sop":
        parts[labels == 1] = whole[labels == 1, ::-1]
    else:
        changed = np.flatnonzero(labels == 1)
        source = _exchange(whole[changed], documents[changed], chosen[changed], generator)
        whole[changed] = parts[changed] = _even_out(whole[changed], source, runs, chosen[changed], sentences)
        _take_back(source, whole[changed], chosen[changed], longest=rules.max_tokens, sentences=sentences)
        parts[changed, 1] = whole[changed[source], 1]
        labels[changed[source == np.arange(len(source))]] = 0
    if rules.task == "nsp" or rules.single_sentence == "original":
        takers, lenders = _find_lenders(np.flatnonzero(~two), documents, chosen, generator)
        parts[takers, 1] = whole[lenders, np.where(two[lenders], 1, 0)]
        labels[takers] = 1
    return SentencePairs(_truncate(parts, rules.max_tokens, sentences, generator), labels)


def _cut_in_two(
    sentences: SentenceSpans,
    runs: SegmentSpans,
    chosen: np.ndarray,
    *,
    rules: PairingRules,
    generator: np.random.Generator,
) -> np.ndarray:
    """The bounds of both parts of each run, (S, 2, 2), in text order."""
    first, last = runs.first[chosen], runs.last[chosen]
    starts, stops = sentences.starts[first], sentences.stops[last - 1]
    draw = generator.random(len(chosen))
    single = last - first == 1
    middles = sentences.starts[first + np.where(single, 0, 1 + (draw * (last - first - 1)).astype(np.int64))]
    anywhere = np.minimum(starts + 1 + (draw * (stops - starts - 1)).astype(np.int64), stops)
    split = rules.task == "sop" and rules.single_sentence == "split"
    middles = np.where(single, anywhere if split else stops, middles)
    if rules.task == "none":
        middles = stops
    return np.stack([np.stack([starts, middles], 1), np.stack([middles, stops], 1)], axis=1)


def _exchange_in_groups(parts: np.ndarray, groups: list[list[int]], exchanged: np.ndarray) -> SentencePairs:
    """Rotate the second parts of parts (S, 2, 2) within the groups that have a 1 in `exchanged`."""
    labels = np.where(parts[:, 1, 0] < parts[:, 1, 1], 0, -1)
    whole = parts.copy()
    for group in (group for group, is_exchanged in zip(groups, exchanged, strict=True) if is_exchanged):
        parts[group, 1] = whole[np.roll(group, -1), 1]
        labels[group] = 1
    return SentencePairs(parts, labels)


def _choose_half(count: int, first_number: int, key: int) -> np.ndarray:
    """Choose one of each two consecutive numbers 2i and 2i + 1 at random (1: chosen)."""
    numbers = first_number + np.arange(count)
    return (hash_array(numbers // 2, key) & np.uint64(1)).astype(np.int64) ^ (numbers & 1)


def _exchange(parts: np.ndarray, documents: np.ndarray, runs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A permutation that gives each sample the second part of another, of similar length and from another document.

    Samples of other documents are searched among the nearest in length; if there is none, one of another run is used.
    """
    count = len(parts)
    shuffled = generator.permutation(count)
    order = shuffled[np.argsort((parts[:, 1, 1] - parts[:, 0, 0])[shuffled], kind="stable")]
    source = order.copy()
    # Swap neighbours in length; an odd one out joins the last two.
    for i in range(0, count - 1, 2):
        source[[i, i + 1]] = source[[i + 1, i]]
    if count % 2 and count > 1:
        source[[count - 2, count - 1]] = source[[count - 1, count - 2]]
    settle(order, source, documents)
    settle(order, source, runs)
    result = np.empty(count, np.int64)
    result[order] = source
    return result


def _even_out(
    parts: np.ndarray, source: np.ndarray, runs: SegmentSpans, chosen: np.ndarray, sentences: SentenceSpans
) -> np.ndarray:
    """Cut the runs of each exchange cycle again, so that their second parts are close in length to that of the first
    of them."""
    leader = np.full(len(source), -1)
    for start in range(len(source)):
        here = start
        while leader[here] < 0:
            leader[here], here = start, int(source[here])
    starts, stops = sentences.starts, parts[:, 1, 1]
    wanted = stops - (parts[leader, 1, 1] - parts[leader, 1, 0])
    after = starts.searchsorted(wanted).clip(1, len(starts) - 1)
    nearest = np.where(wanted - starts[after - 1] < starts[after] - wanted, after - 1, after)
    middles = starts[nearest.clip(runs.first[chosen] + 1, runs.last[chosen] - 1)]
    return np.stack([np.stack([parts[:, 0, 0], middles], 1), np.stack([middles, stops], 1)], axis=1)


def _take_back(
    source: np.ndarray, parts: np.ndarray, runs: np.ndarray, *, longest: int, sentences: SentenceSpans
) -> None:
    """Remove samples from the exchange `source`, in place, so that they keep their own second parts.

    Removed are samples that would get a part of their own run, and samples that could not be truncated without losing
    a whole sentence, which would then never be read. The sample that was to get the removed one's part gets the part
    that the removed one would have got. Repeats until no sample has to be removed.
    """
    changed = parts.copy()
    takers = np.argsort(source)
    while True:
        changed[:, 1] = parts[source, 1]
        lost, spare = _losses(changed, longest, sentences)
        unfit = (runs == runs[source]) | (lost > spare.sum(axis=2)).any(axis=1)
        leaving = np.flatnonzero(unfit & (source != np.arange(len(source))))
        if not len(leaving):
            return
        for sample in leaving.tolist():
            taker, giver = takers[sample], source[sample]
            source[taker], takers[giver] = giver, taker
            source[sample] = takers[sample] = sample


def _find_lenders(
    takers: np.ndarray, documents: np.ndarray, runs: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Samples without a second part, and for each of them a sample to borrow one from; leaves out those without any.

    A sample lends once, and only if its run is read once, so that no sentence is read more than twice. Lenders are from
    other documents if possible.
    """
    _, inverse, counts = np.unique(runs, return_inverse=True, return_counts=True)
    lenders = generator.permutation(np.flatnonzero(counts[inverse] == 1))
    takers, lenders = takers[: len(lenders)], lenders[: len(takers)]
    settle(takers, lenders, documents)
    found = runs[lenders] != runs[takers]
    return takers[found], lenders[found]


def _losses(parts: np.ndarray, longest: int, sentences: SentenceSpans) -> tuple[np.ndarray, np.ndarray]:
    """The number of tokens to cut off each part, (S, 2), and the maximum at its front and back without losing a whole
    sentence, (S, 2, 2).

    Tokens are removed one by one from the part that is currently longer, or from the second one on a tie.
    """
    lengths = np.diff(parts, axis=2)[:, :, 0]
    excess = np.maximum(lengths.sum(axis=1) - longest, 0)
    uneven = np.clip(lengths[:, 0] - lengths[:, 1], -excess, excess)
    rest = excess - np.abs(uneven)
    lost = np.stack([np.maximum(uneven, 0) + rest // 2, np.maximum(-uneven, 0) + rest - rest // 2], axis=1)
    starts, stops = parts[:, :, 0], parts[:, :, 1]
    following = sentences.stops.searchsorted(starts, side="right").clip(max=len(sentences.stops) - 1)
    last = sentences.starts.searchsorted(stops - 1, side="right") - 1
    spare = np.stack([sentences.stops[following] - starts, stops - sentences.starts[last]], axis=2) - 1
    return lost, spare


def _truncate(parts: np.ndarray, longest: int, sentences: SentenceSpans, generator: np.random.Generator) -> np.ndarray:
    """Truncate samples to `longest` tokens as in the originals, removing each token from the front or back of its part
    with equal probability; but never a whole sentence if the other end can be cut instead."""
    over = np.flatnonzero(np.diff(parts, axis=2).sum(axis=(1, 2)) > longest)
    if not len(over):
        return parts
    lost, spare = _losses(parts[over], longest, sentences)
    front = np.minimum(generator.binomial(lost, 0.5), spare[:, :, 0])
    front = np.maximum(front, np.minimum(lost - spare[:, :, 1], spare[:, :, 0])).clip(min=0)
    result = parts.copy()
    result[over, :, 0] += front
    result[over, :, 1] -= lost - front
    return result
