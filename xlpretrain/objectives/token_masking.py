"""Chooses the tokens that a masked language model predicts, and their replacements in the input.

These are n-grams of whole words (ALBERT, arXiv:1909.11942, section 4.1, after SpanBERT), masked as in BERT
(arXiv:1810.04805).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

_NONE = np.empty(0, np.int64)
MASKED, RANDOM = 0.8, 0.1
"""Shares of the predicted tokens that become the mask token or a random token; the others are unchanged."""


@dataclass(frozen=True, eq=False)
class TokenMasker:
    """The masking rules.

    word_starts: mask of the token ids that begin a word; all true to treat tokens as words. mask, unknown: ids of these
    special tokens. rate: share of tokens to predict.
    """

    word_starts: np.ndarray = field(repr=False)
    mask: int
    unknown: int
    rate: float
    max_predictions: int | None
    max_ngram: int

    def choose(self, tokens: np.ndarray, parts: list[tuple[int, int]], generator: np.random.Generator) -> np.ndarray:
        """Choose the positions to predict, ascending: a share `rate` of all tokens, at least one, all within `parts`.

        Unknown tokens are never predicted, since the model cannot learn what they stand for.

        As in ALBERT's code, words are visited in random order. At each one, an n-gram with n in 1..max_ngram,
        p(n) ~ 1/n, is shortened until it fits the remaining number of predictions, and is taken unless it overlaps
        another one. Differences: an n-gram or word never crosses the special token between parts; the authors' choice
        of n is not seeded; and if whole words do not fill the number of predictions (a word of a script without spaces
        may be longer than that), the rest is chosen in the same way with each remaining token as a word.
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
        """The replacements of the tokens to predict. Random ones may be special tokens, as in BERT."""
        draws = generator.random(len(tokens))
        anything = generator.integers(0, len(self.word_starts), len(tokens))
        return np.where(draws < MASKED, self.mask, np.where(draws < MASKED + RANDOM, anything, tokens))

    def _words(self, is_start: np.ndarray, parts: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The bounds of each word, and the number of words from it to the end of its part, at most max_ngram.

        is_start: mask of the tokens that begin a word; the first token of a part always does.
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
    """At most `wanted` positions, from n-grams of words in random order."""
    order = generator.permutation(len(begins))
    weights = np.cumsum(1 / np.arange(1, max_ngram + 1))
    # Fewer n-grams are possible near the end of a part.
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
    """Remove positions from parts (start, stop)."""
    taken = sorted(positions)
    return [
        (max(start, before + 1), min(stop, after))
        for start, stop in parts
        for before, after in pairwise([-1, *taken, stop])
    ]
