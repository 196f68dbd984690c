"""Next-sentence pairs whose label cannot be guessed from the lengths of their parts. Torch-free.

BERT (arXiv:1810.04805) draws the second part of half of its samples from another document. A random text is not as
long as the one it replaces, so the two lengths give the answer away: in the authors' data a classifier of the lengths
alone is right about 60.6 % of the time, where always giving the commoner answer is right 55.3 % of the time.

Here the samples of a block form groups of two (one group of three if their number is odd), of different documents and
of similar length. All second parts of a group are given the same length. Only then is a coin tossed for each group: its
samples keep their second parts (label 0) or pass them round (label 1). The lengths of a group are the same either way,
so they are independent of the label.
"""

from __future__ import annotations

import numpy as np

from xlpretrain.data.sentence_pairs.segments import SegmentSpans, SentenceSpans

_NEIGHBOURS = 32  # how many exchanges are tried before two parts of one document are accepted


def cut_in_groups(
    sentences: SentenceSpans, runs: SegmentSpans, chosen: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, list[list[int]]]:
    """Cut each chosen run in two, and group those whose second parts may be exchanged.

    The shortest run of a group is cut after a sentence chosen at random, and the others after the sentence that gives
    the most similar second part; what the longer second parts have in excess is cut off their ends. No sentence is lost
    whole: where that would happen, and in a run of one sentence, the cut is within a sentence.

    Returns:
        Where the parts of each run start and stop, (S, 2, 2), a run of one token having an empty second part; and the
        groups, as lists of places in `chosen`. A run that no other can be grouped with is in none.
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
    """The places where runs may be cut, all in tokens of the block."""

    def __init__(self, sentences: SentenceSpans, first: np.ndarray, last: np.ndarray, draws: np.ndarray):
        """first, last: the sentences of each run; draws: a number in [0, 1) for each."""
        self.sentence_starts = sentences.starts
        self.first, self.last, self.draws = first, last, draws
        self.starts, self.stops = sentences.starts[first], sentences.stops[last - 1]
        self.spare = self.stops - sentences.starts[last - 1] - 1  # tokens that the end can lose

    def cut_alone(self, sample: int) -> int:
        """A random place: after a sentence, or anywhere in a run of one."""
        ends, start = self._ends_of_sentences(sample), int(self.starts[sample])
        if ends:
            return ends[0]
        return start + 1 + int(float(self.draws[sample]) * (int(self.stops[sample]) - start - 1))

    def cut_couple(self, short: int, long: int) -> tuple[np.ndarray, np.ndarray]:
        """Both with second parts of one length.

        Where a sentence of either would be lost whole, the shorter run is cut after the sentence next to the one drawn,
        and so on; the longer one is cut within a sentence if none of these will do.
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
        """With a second part of this length, which is less than that of the run."""
        wanted = int(self.stops[sample]) - length
        before, _ = self._around(sample, length)
        fits = before is not None and wanted - before <= int(self.spare[sample])
        return self.parts(sample, before if fits and before is not None else wanted, length)

    def parts(self, sample: int, middle: int, length: int) -> np.ndarray:
        """The bounds of both parts of a run that is cut at `middle`, (2, 2)."""
        return np.array([[self.starts[sample], middle], [middle, middle + length]])

    def _matching(self, short: int, middle: int, long: int) -> int | None:
        """The cut of the longer run if the shorter one is cut at `middle`; None: a whole sentence would be lost."""
        length = int(self.stops[short]) - middle
        wanted = int(self.stops[long]) - length
        before, after = self._around(long, length)
        # What is cut off: of the longer run's end, or of the shorter one's.
        found = [] if before is None or wanted - before > self.spare[long] else [before]
        found += [] if after is None or after - wanted > min(int(self.spare[short]), length - 1) else [after]
        return min(found, key=lambda place: abs(place - wanted), default=None)

    def _ends_of_sentences(self, sample: int) -> list[int]:
        """The places between sentences where a run may be cut: the one drawn first, then ever further ones."""
        places = self.sentence_starts[int(self.first[sample]) + 1 : int(self.last[sample])].tolist()
        drawn = int(float(self.draws[sample]) * len(places))
        return [places[i] for i in sorted(range(len(places)), key=lambda i: abs(i - drawn))]

    def _around(self, sample: int, length: int) -> tuple[int | None, int | None]:
        """The ends of sentences nearest to where `length` tokens are left: at it or before, and after it."""
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
    """Couples of runs of different documents and of similar length, and the one that is left over.

    Runs of one sentence go together, and those of one token are in none.
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
    """Let a run join the last group that it goes with: of other documents, or at least of other runs."""
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
    """Change places among `givers` until none is of its taker's group, as far as a near neighbour allows."""
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
