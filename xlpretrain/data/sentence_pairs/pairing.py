"""Runs of sentences into pairs of parts, for the tasks that ask how the second part goes with the first. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xlpretrain.data.order import hash_array
from xlpretrain.data.sentence_pairs.matched_pairs import cut_in_groups, settle
from xlpretrain.data.sentence_pairs.segments import SegmentSpans, SentenceSpans


@dataclass(frozen=True)
class PairingRules:
    """The rules by which samples are made of sentences.

    max_tokens: the most tokens of both parts together. task: the question asked about them. single_sentence: what
    sentence order makes of a run of one sentence. nsp_pairs: how next-sentence prediction finds second parts from
    other documents. short_seq_prob: how often a shorter run is wanted.
    """

    max_tokens: int
    task: Literal["sop", "nsp", "none"] = "sop"
    single_sentence: Literal["original", "skip", "split"] = "split"
    nsp_pairs: Literal["matched", "exchanged"] = "matched"
    short_seq_prob: float = 0.1


@dataclass(frozen=True)
class SentencePairs:
    """The samples of a block: parts (S, 2, 2) are where each part starts and stops, in the order in which it is read
    (a second part may be empty); labels (S,) are as in `stream.Pair`."""

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
    """A sample of each run in `chosen` (ascending, none more than twice).

    A run of n sentences is cut after its first k, k uniform in 1..n-1. Then, by task:

    sop (ALBERT): exactly half of the samples are swapped, one of each two, told by their number in the corpus (that of
    the first is `first_number`). A run of one sentence is cut anywhere (`split`); has one part and no label (`skip`);
    or, as ALBERT's code does (`original`), gets its second part from another document, and label 1.

    nsp (BERT): half of the samples have their second part from another document. BERT draws that part and puts the true
    one back into the text; here these samples exchange their second parts, so that every sentence is still read. Where
    a block holds one document, the second part is another part of the same one.
    `matched`: among samples whose second parts were cut to one length before it is decided which are exchanged
    (`matched_pairs`): the lengths are independent of the label. A run of one sentence is cut within the sentence.
    `exchanged`, for runs that began with it: half of the samples, found as for sop, are cut once more for the exchange,
    and a run of one sentence always gets its second part from another document. At 128 tokens a classifier of the two
    lengths is then right in 63.6 % of the samples, where the commoner label has 56.0 %.

    none: one part.

    Parts from elsewhere may make a sample too long; it is then cut as in the originals, see `_truncate`.
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
    """The bounds of both parts of each run, (S, 2, 2), in the order of the text."""
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
    """The samples of parts (S, 2, 2) that pass their second parts round in the groups with a 1 in `exchanged`."""
    labels = np.where(parts[:, 1, 0] < parts[:, 1, 1], 0, -1)
    whole = parts.copy()
    for group in (group for group, is_exchanged in zip(groups, exchanged, strict=True) if is_exchanged):
        parts[group, 1] = whole[np.roll(group, -1), 1]
        labels[group] = 1
    return SentencePairs(parts, labels)


def _choose_half(count: int, first_number: int, key: int) -> np.ndarray:
    """One of each two numbers 2i, 2i + 1, by a toss for each i."""
    numbers = first_number + np.arange(count)
    return (hash_array(numbers // 2, key) & np.uint64(1)).astype(np.int64) ^ (numbers & 1)


def _exchange(parts: np.ndarray, documents: np.ndarray, runs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The sample whose second part each sample gets: a permutation that pairs samples of different documents and
    similar lengths.

    A sample of another document is looked for among the nearest in length; else one of another run is taken, if there
    is any.
    """
    count = len(parts)
    shuffled = generator.permutation(count)
    order = shuffled[np.argsort((parts[:, 1, 1] - parts[:, 0, 0])[shuffled], kind="stable")]
    source = order.copy()
    # Neighbours in length change places; an odd one out joins the last two.
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
    """Cut all runs that are in exchange with each other where their second parts come nearest to one length: that of
    the first of them, which was drawn."""
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
    """Let samples leave the exchange `source`, and keep their own second parts, where it does not go well.

    That is where the other part would be of the same run (there was no other), and where the sample could not be cut to
    length without the whole of a sentence, which would then be read nowhere. Who was to get its part gets the one that
    it was to get, until all goes well.
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
    """Samples without a second part, and for each one that lends it a part; those that find none are left out.

    Each lends once and only if its run is read once, so that no sentence is read more than twice; it is of another
    document where there is one.
    """
    _, inverse, counts = np.unique(runs, return_inverse=True, return_counts=True)
    lenders = generator.permutation(np.flatnonzero(counts[inverse] == 1))
    takers, lenders = takers[: len(lenders)], lenders[: len(takers)]
    settle(takers, lenders, documents)
    found = runs[lenders] != runs[takers]
    return takers[found], lenders[found]


def _losses(parts: np.ndarray, longest: int, sentences: SentenceSpans) -> tuple[np.ndarray, np.ndarray]:
    """The number of tokens that each part must lose, (S, 2), and the most that it can lose at its front and its back
    without losing a whole sentence, (S, 2, 2).

    One token after another is lost from the part that is longer at the time, from the second where they are even.
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
    """Cut samples of more than `longest` tokens as the originals do, each token from the front or the back of its part
    with equal chance; but, where the other end can lose it instead, never the whole of a sentence."""
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
