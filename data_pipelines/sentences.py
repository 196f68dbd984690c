"""Documents cut into sentences that together are the whole document."""

from __future__ import annotations

import re
from itertools import pairwise

import sentencex

from data_pipelines.config import SentenceConfig

PARAGRAPH_BREAK = re.compile(r"\n\s*\n")

LONG_SPACE = re.compile(r"[^\S\x00-\x7f]")
"""sentencex 1.0 panics at a no-break or other space of several bytes that stands before a full stop."""


def split_sentences(text: str, config: SentenceConfig) -> list[str]:
    """The sentences of a document, each with the white space after it; joined, they are `text`.

    A paragraph break always ends a sentence.
    """
    # sentencex drops the breaks between some paragraphs, so its sentences are only looked up in the text.
    plain = text if text.isascii() else LONG_SPACE.sub(" ", text)  # as many characters
    starts, position = [], 0
    for part in _parts(plain, config):
        if sentence := part.strip():
            found = plain.find(sentence, position)
            if found >= 0:
                starts.append(found)
                position = found + len(sentence)
    return [text[start:end] for start, end in pairwise([0, *starts[1:], len(text)])]


def _parts(text: str, config: SentenceConfig) -> list[str]:
    if config.splitter == "lines":
        return text.split("\n")
    paragraphs = PARAGRAPH_BREAK.split(text)
    return [part for paragraph in paragraphs for part in sentencex.segment(config.language, paragraph)]
