"""Metrics of answers as in the evaluation of SQuAD 1.1 (arXiv:1606.05250, section 6.1) and 2.0 (arXiv:1806.03822)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(answer: str) -> list[str]:
    """The words that are compared: lower case, without ASCII punctuation and English articles."""
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def exact_match(truth: str, predicted: str) -> float:
    """1 if the words are the same, else 0."""
    return float(words(truth) == words(predicted))


def f1(truth: str, predicted: str) -> float:
    """The F1 of the words as multisets; 1 if neither has any."""
    wanted, found = words(truth), words(predicted)
    if not wanted or not found:
        return float(wanted == found)
    common = (Counter(wanted) & Counter(found)).total()
    return 2 * common / (len(wanted) + len(found))


def best_threshold(of_answer: Sequence[float], of_nothing: Sequence[float], leads: Sequence[float]) -> float:
    """The threshold with the highest sum of scores if "no answer" is predicted where its lead exceeds it.

    Args:
        of_answer: the score of each question's best span.
        of_nothing: its score if no answer is predicted.
        leads: how much likelier no answer is.
    """
    order = np.argsort(leads, kind="stable")
    gains = np.asarray(of_answer)[order] - np.asarray(of_nothing)[order]
    sums = np.concatenate([[0.0], np.cumsum(gains)])  # after answering the k questions with the smallest leads
    values = np.asarray(leads, float)[order]
    differs = np.concatenate([[True], values[1:] > values[:-1], [True]]) if len(values) else np.array([True])
    best = int(np.where(differs, sums, -np.inf).argmax())
    if best == 0:
        return float(values[0] - 1) if len(values) else 0.0
    return float(values[best - 1])
