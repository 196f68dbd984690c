"""Next-sentence pairs with labels that are independent of the lengths of their parts. Torch-free.

BERT (arXiv:1810.04805) samples the second part of half of its samples from another document. A random text is not as
long as the one it replaces, so the two lengths reveal the label: on the authors' data a classifier of the lengths alone
has an accuracy of about 60.6 %, where the majority label has 55.3 %.

Here the samples of a block form groups of two (one group of three if their number is odd), from different documents and
of similar length. All second parts of a group are cut to the same length. Only then is each group's label chosen at
random: its samples keep their second parts (label 0) or rotate them (label 1). The lengths of a group are the same
either way, so they are independent of the label.
"""

from __future__ import annotations

import numpy as np

from xlpretrain.data.sentence_pairs.segments import SegmentSpans, SentenceSpans

_NEIGHBOURS = 32  # swaps to try before accepting two parts of one document


def cut_in_groups(
    sentences: SentenceSpans, runs: SegmentSpans, chosen: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, list[list[int]]]:
    """Cut each chosen run in two, and form groups that may exchange their second parts.

    The shortest run of a group is cut after a random sentence, and the others after the sentence that gives the most
    similar second part; longer second parts are then truncated at the end. No whole sentence is lost: where that would
    happen, and in a run of one sentence, the cut is inside a sentence.

    Returns:
        The start and stop of both parts of each run, (S, 2, 2), where a run of one token has an empty second part; and
        the groups, as lists of indices into `chosen`. A run that fits no other is in no group.
    """
    first, last = runs.first[chosen], runs.last[chosen]
    starts, stops = sentences.starts[first], sentences.stops[last - 1]
    parts = np.stack([np.stack([starts, stops], 1), np.stack([stops, stops], 1)], axis=1)
    takers, givers, odd = _couples(sentences.documents[first], chosen, stops - starts, last - first == 1, generator)
    cutter = _Cutter(sentences, first, last, generator.random(len(chosen)))
    groups = []
    for couple in np.stack([takers, givers], axis=1).tolist():
        short, long = sorted(couple, key=lambda sample: int(stops[sample] - starts[sample]))
        parts[short], parts[long] = cutter.cut_couple(short, long)
        groups.append([short, long])
    if odd is not None:
        _join(odd, groups, parts, cutter, documents=sentences.documents[first], runs=chosen)
    return parts, [group for group in groups if len(set(chosen[group].tolist())) == len(group)]


class _Cutter:
    """Finds cut positions, in tokens of the block."""

    def __init__(self, sentences: SentenceSpans, first: np.ndarray, last: np.ndarray, draws: np.ndarray):
        """first, last: bounds of the sentences of each run; draws: a random number in [0, 1) for each run."""
        self.sentence_starts = sentences.starts
        self.first, self.last, self.draws = first, last, draws
        self.starts, self.stops = sentences.starts[first], sentences.stops[last - 1]
        self.spare = self.stops - sentences.starts[last - 1] - 1  # tokens that can be cut off the end

    def cut_alone(self, sample: int) -> int:
        """A random cut: after a sentence, or anywhere in a run of one sentence."""
        ends, start = self._ends_of_sentences(sample), int(self.starts[sample])
        if ends:
            return ends[0]
        return start + 1 + int(float(self.draws[sample]) * (int(self.stops[sample]) - start - 1))

    def cut_couple(self, short: int, long: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut two runs so that their second parts have the same length.

        If that would lose a whole sentence of either, cuts of the shorter run after other sentences are tried, nearest
        to the random one first; if all fail, the longer run is cut inside a sentence.
        """
        for middle in self._ends_of_sentences(short):
            if (place := self._matching(short, middle, long)) is not None:
                break
        else:
            middle = self.cut_alone(short)
            place = int(self.stops[long] - self.stops[short]) + middle
        length = min(int(self.stops[short]) - middle, int(self.stops[long]) - place)
        return self.parts(short, middle, length), self.parts(long, place, length)

    def cut_to(self, sample: int, length: int) -> np.ndarray:
        """Cut a run so that its second part has this length, which must be less than the run's."""
        wanted = int(self.stops[sample]) - length
        before, _ = self._around(sample, length)
        fits = before is not None and wanted - before <= int(self.spare[sample])
        return self.parts(sample, before if fits and before is not None else wanted, length)

    def parts(self, sample: int, middle: int, length: int) -> np.ndarray:
        """The bounds of both parts of a run cut at `middle`, (2, 2)."""
        return np.array([[self.starts[sample], middle], [middle, middle + length]])

    def _matching(self, short: int, middle: int, long: int) -> int | None:
        """The cut of the longer run if the shorter one is cut at `middle`; None if a whole sentence would be lost."""
        length = int(self.stops[short]) - middle
        wanted = int(self.stops[long]) - length
        before, after = self._around(long, length)
        # Truncates the longer run, or the shorter one.
        found = [] if before is None or wanted - before > self.spare[long] else [before]
        found += [] if after is None or after - wanted > min(int(self.spare[short]), length - 1) else [after]
        return min(found, key=lambda place: abs(place - wanted), default=None)

    def _ends_of_sentences(self, sample: int) -> list[int]:
        """The sentence boundaries of a run, in order of their distance from a random one."""
        places = self.sentence_starts[int(self.first[sample]) + 1 : int(self.last[sample])].tolist()
        drawn = int(float(self.draws[sample]) * len(places))
        return [places[i] for i in sorted(range(len(places)), key=lambda i: abs(i - drawn))]

    def _around(self, sample: int, length: int) -> tuple[int | None, int | None]:
        """The sentence boundaries nearest to `length` tokens before the end: the last up to there, and the next one."""
        first, last = int(self.first[sample]) + 1, int(self.last[sample]) - 1
        after = int(self.sentence_starts.searchsorted(int(self.stops[sample]) - length, side="right"))
        before, after = min(after - 1, last), max(after, first)
        return (
            int(self.sentence_starts[before]) if before >= first else None,
            int(self.sentence_starts[after]) if after <= last else None,
        )


def _couples(
    documents: np.ndarray, runs: np.ndarray, lengths: np.ndarray, single: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Pair runs from different documents with similar lengths; also returns the run that is left over.

    Runs of one sentence are paired with each other, and runs of one token are not paired.
    """
    candidates = generator.permutation(np.flatnonzero(lengths > 1))
    order = candidates[np.lexsort((lengths[candidates], ~single[candidates]))]
    half = len(order) // 2
    takers, givers = order[0 : 2 * half : 2].copy(), order[1 : 2 * half : 2].copy()
    settle(takers, givers, documents)
    settle(takers, givers, runs)
    return takers, givers, int(order[-1]) if len(order) % 2 else None


def _join(
    odd: int, groups: list[list[int]], parts: np.ndarray, cutter: _Cutter, *, documents: np.ndarray, runs: np.ndarray
) -> None:
    """Add a run to the last group that it fits: one of other documents, or at least of other runs."""
    room = int(cutter.stops[odd] - cutter.starts[odd])
    lengths = [int(parts[group[0], 1, 1] - parts[group[0], 1, 0]) for group in groups]
    for keys in (documents, runs):
        for number in reversed(range(len(groups))):
            if lengths[number] < room and keys[odd] not in keys[groups[number]]:
                groups[number].append(odd)
                parts[odd] = cutter.cut_to(odd, lengths[number])
                return
    middle = cutter.cut_alone(odd)
    parts[odd] = cutter.parts(odd, middle, int(cutter.stops[odd]) - middle)


def settle(takers: np.ndarray, givers: np.ndarray, groups: np.ndarray) -> None:
    """Swap near neighbours in `givers` so that no giver is of its taker's group, as far as possible."""
    of_taker, of_giver = groups[takers].tolist(), groups[givers].tolist()
    for i in [i for i in range(len(takers)) if of_taker[i] == of_giver[i]]:
        if of_taker[i] != of_giver[i]:
            continue
        for distance in range(1, _NEIGHBOURS):
            j = next(
                (
                    j
                    for j in (i + distance, i - distance)
                    if 0 <= j < len(takers) and of_giver[j] != of_taker[i] and of_giver[i] != of_taker[j]
                ),
                None,
            )
            if j is not None:
                givers[i], givers[j] = givers[j], givers[i]
                of_giver[i], of_giver[j] = of_giver[j], of_giver[i]
                break
