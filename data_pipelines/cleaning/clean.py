"""Cleaning of single documents: each step is optional, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.cleaning import quality
from data_pipelines.cleaning.decontamination import DecontaminationConfig, load_ngrams, overlaps
from data_pipelines.sources.config import Source
from xlpretrain.extras import optional
from xlpretrain.schema import FormerKey, Problem, Section

EMPTY = "empty"
"""The name under which documents without any text are counted."""


class MinHashConfig(Section):
    """The definition of near-duplicates: documents that share all hashes of a band."""

    words: int = Field(5, ge=1)
    """Documents are compared by their runs of this many words; in scripts without spaces between words, of letters."""
    bands: int = Field(14, ge=1, le=64)
    """More bands find pairs that are less alike."""
    rows: int = Field(8, ge=1, le=64)
    """Hashes in a band; more of them leave only pairs that are more alike. 14 bands of 8 find half of the pairs that
    have 0.7 of their runs in common, and 92 % of those that have 0.8."""


class CleanConfig(Section):
    """The cleaning of documents, before anything else. A step that is off costs nothing."""

    repair: bool = False
    """Repair Unicode that was decoded wrongly (by ftfy)."""
    min_characters: int = Field(0, ge=0)
    """Leave out shorter documents."""
    max_characters: int | None = Field(None, ge=1)
    """Leave out longer documents."""
    rules: tuple[Literal["c4", "gopher"], ...] = ()
    """Simple quality rules after C4 (drops lines too) and Gopher; for English."""
    decontaminate: Annotated[DecontaminationConfig | None, FormerKey("overlap")] = None
    """Leave out training documents that share a run of words with a held-out set."""
    exact_duplicates: bool = True
    """Keep one of several documents with the same text."""
    duplicate_paragraphs: bool = False
    """Keep each paragraph in one document only."""
    minhash_dedup: Annotated[bool, FormerKey("near_duplicates")] = False
    """Keep one of several documents that are nearly the same (by MinHash); held-out ones rather than training ones."""
    minhash: MinHashConfig = MinHashConfig()

    def problems(self) -> Iterator[Problem]:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            yield "max_characters", f"must not be below min_characters: {self.max_characters} < {self.min_characters}"
        if self.minhash_dedup and not self.exact_duplicates:
            yield "minhash_dedup", "needs exact_duplicates: copies are near-duplicates too"


def clean(text: str, config: CleanConfig, counts: Counter[str]) -> str | None:
    """Clean a document: None if it is dropped; `counts` says why. Raises `DataError`."""
    if _is_empty(text):
        counts[EMPTY] += 1
        return None
    if config.repair:
        repaired = _ftfy()(text)
        counts["repaired"] += repaired != text
        text = repaired
    for rule in sorted(config.rules):  # c4, which drops lines, before gopher, which judges what remains
        if rule == "c4":
            text, reason = quality.apply_c4_rules(text)
        else:
            reason = quality.passes_gopher(text)
        if reason is not None:
            counts[f"{rule}: {reason}"] += 1
            return None
    if len(text) < config.min_characters:
        counts["too short"] += 1
        return None
    if config.max_characters is not None and len(text) > config.max_characters:
        counts["too long"] += 1
        return None
    if _is_empty(text):  # by now
        counts[EMPTY] += 1
        return None
    return text


def _is_empty(text: str) -> bool:
    return not text or text.isspace()


def is_contaminated(text: str, config: CleanConfig, counts: Counter[str]) -> bool:
    """True if a training document overlaps the held-out set. Raises `DataError` if that cannot be read."""
    if config.decontaminate is None or not overlaps(
        text, load_ngrams(config.decontaminate), config.decontaminate.words
    ):
        return False
    counts["overlaps the held-out set"] += 1
    return True


def sources_of(config: CleanConfig) -> tuple[Source, ...]:
    """The sources that cleaning reads."""
    return config.decontaminate.against if config.decontaminate else ()


@lru_cache(1)
def _ftfy() -> Callable[[str], str]:
    with optional("ftfy", "clean.repair"):
        import ftfy

    # Only what was decoded wrongly: quotes, widths and line ends are the corpus's own.
    config = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, fix_line_breaks=False,
        unescape_html=False, remove_terminal_escapes=False, remove_control_chars=False, normalization=None,
    )  # fmt: skip
    return lambda text: str(ftfy.fix_text(text, config))
