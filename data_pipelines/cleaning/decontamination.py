"""Documents that overlap a held-out set: they share a run of words with it (n-gram decontamination)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import xxhash
from pydantic import Field

from data_pipelines.sources.config import Source
from data_pipelines.sources.records import cut_into_units, read_pieces, source_files
from xlpretrain.schema import Problem, Section

WORD = re.compile(r"\w+")


class DecontaminationConfig(Section):
    """The held-out set, and how much of it a training document may not hold."""

    against: tuple[Source, ...] = Field(min_length=1)
    """Sources of the held-out texts; `corpus`, `into` and `weight` have no meaning here."""
    words: int = Field(13, ge=1)
    """Number of consecutive words, ignoring case and punctuation, that count as an overlap."""

    def problems(self) -> Iterator[Problem]:
        if any(getattr(source, "path", None) == "-" for source in self.against):
            yield "against", "cannot be read from standard input"


@lru_cache(1)
def load_ngrams(config: DecontaminationConfig) -> frozenset[int]:
    """The hashes of the runs of words of a held-out set, in memory. Raises `DataError`."""
    files = [source_files(source) for source in config.against]
    found: set[int] = set()
    for unit in cut_into_units(config.against, files):
        for document in read_pieces(config.against[unit.source], unit.pieces):
            found.update(word_ngrams(document, config.words))
    return frozenset(found)


def overlaps(text: str, ngrams: frozenset[int], num_words: int) -> bool:
    """True if a document contains one of these sequences of words."""
    return any(run in ngrams for run in word_ngrams(text, num_words))


def word_ngrams(text: str, num_words: int) -> Iterator[int]:
    """The hashes of all runs of so many words in a text, without regard to case and punctuation."""
    words = WORD.findall(text.lower())
    for start in range(len(words) - num_words + 1):
        yield xxhash.xxh64_intdigest(" ".join(words[start : start + num_words]).encode())
