"""Documents cut into sentences that together are the whole document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate, pairwise

import sentencex

from data_pipelines.config import SentenceConfig

PARAGRAPH_BREAK = re.compile(r"(\n\s*\n)")
_ODD_BREAK = re.compile(r"\n[^\S\n]+\n")
_CHUNK_CHARACTERS = 5000
_LINE_BREAK = re.compile(r"(\n)")

_LONG_SPACES = "".join(c for c in map(chr, range(0x80, 0x3001)) if c.isspace())
"""sentencex 1.0 panics at a no-break or other space of several bytes that stands before a full stop."""
_LONG_SPACE = re.compile(f"[{_LONG_SPACES}]")


def split_sentences(text: str, config: SentenceConfig) -> list[str]:
    """The sentences of a document, each with the white space after it; joined, they are `text`."""
    return [text[start:end] for start, end in pairwise([*sentence_starts(text, config), len(text)])]


def sentence_starts(text: str, config: SentenceConfig) -> list[int]:
    """Where the sentences of a document begin, the first at 0. A paragraph break always ends a sentence."""
    plain = text
    if not text.isascii() and any(space in text for space in _LONG_SPACES):
        plain = _LONG_SPACE.sub(" ", text)  # as many characters
    if config.splitter == "lines":
        parts = _LINE_BREAK.split(plain)
    else:
        if _ODD_BREAK.search(plain):  # sentencex knows no break with white space in it
            plain = PARAGRAPH_BREAK.sub(lambda found: "\n" * len(found[0]), plain)
        parts = [part for chunk in _chunks(plain) for part in _segment(chunk, config.language)]
    ends = accumulate(map(len, parts))
    starts = [end - len(rest) for rest, end in zip(map(str.lstrip, parts), ends, strict=True) if rest]
    return [0, *starts[1:]]


def _chunks(text: str) -> Iterator[str]:
    """The text in runs of paragraphs: sentencex drops breaks in what has more than 10 KB."""
    start = 0
    while len(text) - start > _CHUNK_CHARACTERS:
        end = text.rfind("\n\n", start, start + _CHUNK_CHARACTERS)
        if end < 0:  # a long paragraph
            end = text.find("\n\n", start + _CHUNK_CHARACTERS - 1)
        if end < 0:
            break
        yield from (text[start:end], text[end : end + 2])
        start = end + 2
    yield text[start:]


def _segment(text: str, language: str) -> list[str]:
    """By sentencex: parts that joined are the text."""
    parts: list[str] = sentencex.segment(language, text)
    if "".join(parts) == text:
        return parts
    paragraphs = PARAGRAPH_BREAK.split(text)
    parts = [part for paragraph in paragraphs for part in sentencex.segment(language, paragraph)]
    return parts if "".join(parts) == text else paragraphs
