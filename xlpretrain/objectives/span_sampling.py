"""Samples the spans that a permutation language model predicts (XLNet, arXiv:1906.08237, section 3.1)."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np


class SpanSampler:
    """Samples spans of n = 1 .. max_ngram tokens or words, with a probability proportional to 1/n.

    A span is surrounded by alpha / beta times as many tokens of context. Without `whole_words`, a span is n tokens from
    the start of a word, as in the authors' code (which intends to count words, but checks the span's first token each
    time).
    """

    def __init__(self, word_starts: np.ndarray, *, max_ngram: int, alpha: int, beta: int, whole_words: bool):
        """word_starts: mask of the tokens of the vocabulary that begin a word."""
        self._word_starts = word_starts
        self._alpha, self._beta, self._whole_words = alpha, beta, whole_words
        lengths = 1 / np.arange(1, max_ngram + 1)
        self._cumulative = np.cumsum(lengths / lengths.sum())

    def sample(self, tokens: np.ndarray, goal: int, rng: np.random.Generator) -> np.ndarray:
        """A mask that selects exactly `goal` of `tokens` (or all, if there are fewer), sampled from left to right.

        If the spans contain fewer tokens, random single tokens are added.
        """
        mask, num_tokens = np.zeros(len(tokens), bool), len(tokens)
        starts = np.flatnonzero(self._word_starts[tokens]).tolist()
        num_words = len(starts)
        # The end of the last word.
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
