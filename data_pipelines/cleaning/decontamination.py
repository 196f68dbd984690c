"""N-gram decontamination: finds documents that share an n-gram of words with a held-out set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from pydantic import Field

from data_pipelines.cleaning.ngrams import word_ngrams
from data_pipelines.sources.config import Source
from data_pipelines.sources.records import cut_into_units, read_pieces
from xlpretrain.schema import Problem, Section

CHARACTERS_PER_WORD = 2
"""Letters that count as a word in scripts without spaces. One shared n-gram removes a document, so n-grams must be as
rare there as in other scripts."""


class DecontaminationConfig(Section):
    """The held-out set, and the overlap that removes a training document."""

    against: tuple[Source, ...] = Field(min_length=1)
    """Sources of the held-out texts; `subset`, `split` and `weight` are ignored."""
    words: int = Field(13, ge=1)
    """Length of the n-grams in words, ignoring case and punctuation. In scripts without spaces between words, two
    letters count as a word."""

    def problems(self) -> Iterator[Problem]:
        if any(getattr(source, "path", None) == "-" for source in self.against):
            yield "against", "cannot be read from standard input"


@lru_cache(1)
def load_ngrams(config: DecontaminationConfig) -> frozenset[int]:
    """The hashes of a held-out set's n-grams, in memory. Raises `DataError`."""
    files = [source.find_files() for source in config.against]
    found: set[int] = set()
    for unit in cut_into_units(config.against, files):
        for document in read_pieces(config.against[unit.source], unit.pieces):
            found.update(_ngrams(document, config.words))
    return frozenset(found)


def overlaps(text: str, ngrams: frozenset[int], num_words: int) -> bool:
    """True if a document contains one of these n-grams."""
    return any(run in ngrams for run in _ngrams(text, num_words))


def _ngrams(text: str, num_words: int) -> Iterator[int]:
    return word_ngrams(text, num_words, characters_per_word=CHARACTERS_PER_WORD)
