"""Simple quality filters for web text, after C4 (arXiv:1910.10683) and Gopher (arXiv:2112.11446)."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

_ENDS = (".", "!", "?", '"', "\N{RIGHT DOUBLE QUOTATION MARK}")
_BULLETS = ("-", "*", "\N{BULLET}", "\N{EN DASH}", "\N{TRIANGULAR BULLET}")
_ELLIPSES = ("...", "\N{HORIZONTAL ELLIPSIS}")
_STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def apply_c4_rules(text: str) -> tuple[str, str | None]:
    """The lines that are sentences (C4, section 2.2), and the reason to drop the document, or None."""
    lower = text.lower()
    if "lorem ipsum" in lower:
        return text, "lorem ipsum"
    if "{" in text:
        return text, "a curly bracket"
    kept = [line for line in text.split("\n") if not line.strip() or _is_sentence(line)]
    text = "\n".join(kept).strip("\n")
    if sum(text.count(end) for end in ".!?") < 3:
        return text, "fewer than three sentences"
    return text, None


def passes_gopher(text: str) -> str | None:
    """The reason to drop a document (some rules of Gopher, table A1), or None."""
    words = text.split()
    if not 50 <= len(words) <= 100_000:
        return "fewer than 50 words or more than 100,000"
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
        return "words of unusual length"
    if (text.count("#") + sum(text.count(ellipsis) for ellipsis in _ELLIPSES)) / len(words) > 0.1:
        return "symbols for words"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if sum(line.startswith(_BULLETS) for line in lines) / len(lines) > 0.9:
        return "bullet points"
    if sum(line.endswith(_ELLIPSES) for line in lines) / len(lines) > 0.3:
        return "lines cut off"
    if sum(any(map(str.isalpha, word)) for word in words) / len(words) < 0.8:
        return "words without letters"
    if len(_STOP_WORDS.intersection(map(str.lower, words))) < 2:
        return "no stop words"
    return _repeats(lines, words)


def _repeats(lines: list[str], words: list[str]) -> str | None:
    if 1 - len(set(lines)) / len(lines) > 0.3:
        return "repeated lines"
    (pair, count), *_ = Counter(pairwise(words)).most_common(1)
    if count > 1 and count * sum(map(len, pair)) / sum(map(len, words)) > 0.2:
        return "repeated words"
    return None


def _is_sentence(line: str) -> bool:
    lower = line.lower()
    return (
        line.rstrip().endswith(_ENDS)
        and not line.rstrip().endswith(_ELLIPSES)
        and len(line.split()) >= 5
        and "javascript" not in lower
        and not any(phrase in lower for phrase in _POLICY)
    )
