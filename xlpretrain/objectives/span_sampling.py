"""The tokens that a permutation language model predicts: spans among context (XLNet, arXiv:1906.08237, section 3.1)."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np


class SpanSampler:
    """Spans of n = 1 .. max_ngram tokens or words with probability 1/n (scaled), amid alpha / beta times their tokens.

    With `whole_words` false, a span is n tokens from a word's beginning on, as in the authors' code (which means to
    count words, but looks at the span's first token each time).
    """

    def __init__(self, word_starts: np.ndarray, *, max_ngram: int, alpha: int, beta: int, whole_words: bool):
        """`word_starts`: whether each token of the vocabulary begins a word."""
        self._word_starts = word_starts
        self._alpha, self._beta, self._whole_words = alpha, beta, whole_words
        lengths = 1 / np.arange(1, max_ngram + 1)
        self._cumulative = np.cumsum(lengths / lengths.sum())

    def sample(self, tokens: np.ndarray, goal: int, rng: np.random.Generator) -> np.ndarray:
        """A mask over `tokens` of exactly `goal` of them (or all, if they are fewer), read from left to right.

        Where the spans do not come to `goal`, single tokens at random positions fill it up.
        """
        mask, num_tokens = np.zeros(len(tokens), bool), len(tokens)
        starts = np.flatnonzero(self._word_starts[tokens]).tolist()
        num_words = len(starts)
        # One more start, so that the last word has an end.
        edges = [*starts, num_tokens]
        draws = rng.random((goal + 1, 2))
        lengths = 1 + self._cumulative.searchsorted(draws[:, 0])
        taken, position = 0, 0
        for n, draw in zip(lengths.tolist(), draws[:, 1].tolist(), strict=True):
            n = min(n, goal - taken)
            before = int(draw * (n * self._alpha // self._beta))
            word = bisect_left(starts, position + before)
            if n <= 0 or word >= num_words:
                break
            begin = starts[word]
            end = begin + n
            if self._whole_words:
                last = min(word + n, num_words)
                while last > word and edges[last] - begin > goal - taken:
                    last -= 1
                end = edges[last]
            if end >= num_tokens:
                break
            mask[begin:end] = True
            taken += end - begin
            position = end + max(0, (end - begin) * self._alpha // self._beta - before)
        if taken == goal:
            return mask
        (free,) = np.nonzero(~mask)
        missing = min(goal - taken, len(free))
        if missing > 0:
            mask[rng.choice(free, size=missing, replace=False)] = True
        return mask
