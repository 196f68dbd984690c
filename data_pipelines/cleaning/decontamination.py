"""Documents that overlap a held-out set: they share a run of words with it (n-gram decontamination)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from pydantic import Field

from data_pipelines.cleaning.ngrams import word_ngrams
from data_pipelines.sources.config import Source
from data_pipelines.sources.records import cut_into_units, read_pieces, source_files
from xlpretrain.schema import Problem, Section

CHARACTERS_PER_WORD = 2
"""Letters that count as a word in scripts without spaces: a single run in common condemns a document, so a run must be
as rare there as elsewhere."""


class DecontaminationConfig(Section):
    """The held-out set, and how much of it a training document may not hold."""

    against: tuple[Source, ...] = Field(min_length=1)
    """Sources of the held-out texts; `subset`, `split` and `weight` have no meaning here."""
    words: int = Field(13, ge=1)
    """Number of consecutive words, ignoring case and punctuation, that count as an overlap. In scripts without spaces
    between words, two letters count as a word."""

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
            found.update(_ngrams(document, config.words))
    return frozenset(found)


def overlaps(text: str, ngrams: frozenset[int], num_words: int) -> bool:
    """True if a document contains one of these sequences of words."""
    return any(run in ngrams for run in _ngrams(text, num_words))


def _ngrams(text: str, num_words: int) -> Iterator[int]:
    return word_ngrams(text, num_words, characters_per_word=CHARACTERS_PER_WORD)
