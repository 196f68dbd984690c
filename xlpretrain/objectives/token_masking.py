"""The tokens that a masked language model predicts, and their replacements in the input.

n-grams of whole words (ALBERT, arXiv:1909.11942, section 4.1, after SpanBERT), masked as in BERT (arXiv:1810.04805).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

_NONE = np.empty(0, np.int64)
MASKED, RANDOM = 0.8, 0.1
"""Shares of the predicted tokens that become the mask symbol, and any token of the vocabulary; the others stay."""


@dataclass(frozen=True, eq=False)
class TokenMasker:
    """The rules.

    word_starts: by id, whether a token begins a word; with one that is always true, words are tokens.
    mask, unknown: the ids of these symbols.
    """

    word_starts: np.ndarray = field(repr=False)
    mask: int
    unknown: int
    rate: float
    max_predictions: int | None
    max_ngram: int

    def choose(self, tokens: np.ndarray, parts: list[tuple[int, int]], generator: np.random.Generator) -> np.ndarray:
        """The positions to predict, ascending: a share `rate` of all tokens, one at least, all within `parts`.

        Unknown tokens are never among them: there is nothing to learn about what they stand for.

        As ALBERT's code: words are visited in random order; at each, an n-gram with n in 1..max_ngram, p(n) ~ 1/n, is
        shortened until it fits what is still to be predicted, and taken unless it overlaps another. Deviations: an
        n-gram or word never reaches over the symbol between the parts; the authors' draw of n is not seeded; and where
        whole words do not come to the number wanted (those of a script without spaces may be longer than all of it),
        the rest is chosen likewise with each token that is left as a word.
        """
        wanted = min(self.max_predictions or len(tokens), max(1, round(len(tokens) * self.rate)))
        is_start = self.word_starts[tokens]
        unknown = np.flatnonzero(tokens == self.unknown).tolist()
        if unknown:
            parts = _without(parts, unknown)
        positions = _take(*self._words(is_start, parts), wanted, self.max_ngram, generator)
        missing = wanted - len(positions)
        if missing:
            single = self._words(np.ones_like(is_start), _without(parts, positions))
            positions += _take(*single, missing, self.max_ngram, generator)
        return np.sort(np.asarray(positions, np.int64))

    def replace(self, tokens: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The replacements of the tokens to predict. Random ones may be special symbols too, as in BERT."""
        draws = generator.random(len(tokens))
        anything = generator.integers(0, len(self.word_starts), len(tokens))
        return np.where(draws < MASKED, self.mask, np.where(draws < MASKED + RANDOM, anything, tokens))

    def _words(self, is_start: np.ndarray, parts: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The bounds of each word, and the number of words, up to max_ngram, from it to the end of its part.

        is_start: of each token, whether it begins a word; a part's first one does in any case.
        """
        begins, ends, ngrams = [_NONE], [_NONE], [_NONE]
        for start, stop in parts:
            if start < stop:
                first = np.flatnonzero(is_start[start + 1 : stop]) + start + 1
                begins.append(np.concatenate([[start], first]))
                ends.append(np.concatenate([first, [stop]]))
                ngrams.append(np.minimum(np.arange(len(first) + 1, 0, -1), self.max_ngram))
        return np.concatenate(begins), np.concatenate(ends), np.concatenate(ngrams)


def _take(
    begins: np.ndarray,
    ends: np.ndarray,
    ngrams: np.ndarray,
    wanted: int,
    max_ngram: int,
    generator: np.random.Generator,
) -> list[int]:
    """Positions of n-grams of words, in random order, `wanted` at most."""
    order = generator.permutation(len(begins))
    weights = np.cumsum(1 / np.arange(1, max_ngram + 1))
    # Near the end of its part a word has fewer n-grams to choose from.
    draws = generator.random(len(begins)) * weights[ngrams[order] - 1]
    lengths = weights.searchsorted(draws, side="right") + 1
    begin, end = begins.tolist(), ends.tolist()
    taken = bytearray(len(begin))
    positions: list[int] = []
    for word, n in zip(order.tolist(), lengths.tolist(), strict=True):
        left = wanted - len(positions)
        if not left:
            break
        while n and end[word + n - 1] - begin[word] > left:
            n -= 1
        if n and not any(taken[word : word + n]):
            taken[word : word + n] = b"\x01" * n
            positions.extend(range(begin[word], end[word + n - 1]))
    return positions


def _without(parts: list[tuple[int, int]], positions: list[int]) -> list[tuple[int, int]]:
    """The rest of parts (start, stop) without these positions."""
    taken = sorted(positions)
    return [
        (max(start, before + 1), min(stop, after))
        for start, stop in parts
        for before, after in pairwise([-1, *taken, stop])
    ]
