"""Which tokens a masked language model predicts, and what it reads in their place.

n-grams of whole words (ALBERT, arXiv:1909.11942, section 4.1, after SpanBERT), masked as in BERT (arXiv:1810.04805).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

MASKED, RANDOM = 0.8, 0.1
"""Of the tokens to predict, so many become the mask symbol, so many any token of the vocabulary; the others stay."""


@dataclass(frozen=True, eq=False)
class Masking:
    """The rules. word_starts: by id, whether a token begins a word; with one that is always true, words are tokens."""

    word_starts: np.ndarray = field(repr=False)
    mask: int
    rate: float
    max_predictions: int | None
    max_ngram: int

    def choose(self, tokens: np.ndarray, parts: list[tuple[int, int]], generator: np.random.Generator) -> np.ndarray:
        """The positions to predict, ascending: within `parts` (start, stop), a share `rate` of all tokens.

        As ALBERT's code: words are visited in random order; at each, an n-gram with n in 1..max_ngram, p(n) ~ 1/n, is
        shortened until it fits what is still to be predicted, and taken unless it overlaps another. Deviations: an
        n-gram or word never reaches over the symbol between the parts; the authors' draw of n is not seeded.
        """
        wanted = min(self.max_predictions or len(tokens), max(1, round(len(tokens) * self.rate)))
        begins, ends, ngrams = self._words(tokens, parts)
        if not len(begins):
            return np.empty(0, np.int64)
        order = generator.permutation(len(begins))
        weights = np.cumsum(1 / np.arange(1, self.max_ngram + 1))
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
        return np.sort(np.asarray(positions, np.int64))

    def replace(self, tokens: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """What is read in place of tokens to predict. Random ones may be special symbols too, as in BERT."""
        draws = generator.random(len(tokens))
        anything = generator.integers(0, len(self.word_starts), len(tokens))
        return np.where(draws < MASKED, self.mask, np.where(draws < MASKED + RANDOM, anything, tokens))

    def _words(self, tokens: np.ndarray, parts: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each word begins and ends, and how many words, up to max_ngram, there are from it on in its part."""
        starts = self.word_starts[tokens]
        begins, ends, ngrams = [], [], []
        for start, stop in parts:
            if start < stop:
                first = np.flatnonzero(starts[start + 1 : stop]) + start + 1
                begins.append(np.concatenate([[start], first]))
                ends.append(np.concatenate([first, [stop]]))
                ngrams.append(np.minimum(np.arange(len(first) + 1, 0, -1), self.max_ngram))
        if not begins:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
        return np.concatenate(begins), np.concatenate(ends), np.concatenate(ngrams)
