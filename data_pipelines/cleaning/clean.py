"""Cleaning of single documents. Every step is optional and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.cleaning import quality
from data_pipelines.cleaning.decontamination import DecontaminationConfig, load_ngrams, overlaps
from data_pipelines.sources.config import Source
from xlpretrain.errors import DataError
from xlpretrain.schema import FormerKey, Problem, Section

EMPTY = "empty"
"""Counter of documents without text."""


class MinHashConfig(Section):
    """Near-duplicate detection: documents are near-duplicates if they share all hashes of a band."""

    words: int = Field(5, ge=1)
    """Length of the n-grams that are compared, in words; in scripts without spaces between words, in letters."""
    bands: int = Field(14, ge=1, le=64)
    """Number of bands; more of them also find less similar pairs."""
    rows: int = Field(8, ge=1, le=64)
    """Hashes per band; more of them find only more similar pairs. 14 bands of 8 find half of the pairs with a Jaccard
    similarity of 0.7, and 92 % of those with 0.8."""


class CleanConfig(Section):
    """The cleaning of documents, before all other stages. Disabled steps cost nothing."""

    repair: bool = False
    """Repair wrongly decoded Unicode (mojibake) with ftfy."""
    min_characters: int = Field(0, ge=0)
    """Drop shorter documents."""
    max_characters: int | None = Field(None, ge=1)
    """Drop longer documents."""
    rules: tuple[Literal["c4", "gopher"], ...] = ()
    """Simple quality rules for English, after C4 (which also drops lines) and Gopher."""
    decontaminate: Annotated[DecontaminationConfig | None, FormerKey("overlap")] = None
    """Drop training documents that share an n-gram with a held-out set."""
    exact_duplicates: bool = True
    """Keep one of several documents with identical text."""
    duplicate_paragraphs: bool = False
    """Keep each repeated paragraph in one document only."""
    minhash_dedup: Annotated[bool, FormerKey("near_duplicates")] = False
    """Keep one of several near-duplicates (by MinHash); held-out documents win over training ones."""
    minhash: MinHashConfig = MinHashConfig()

    def problems(self) -> Iterator[Problem]:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            yield (
                "max_characters",
                f"must be at least min_characters, got {self.max_characters} < {self.min_characters}",
            )
        if self.minhash_dedup and not self.exact_duplicates:
            yield "minhash_dedup", "requires exact_duplicates: exact copies are near-duplicates too"


def clean(text: str, config: CleanConfig, counts: Counter[str]) -> str | None:
    """Clean a document; None if it is dropped. Adds the reason to `counts`. Raises `DataError`."""
    if _is_empty(text):
        counts[EMPTY] += 1
        return None
    if config.repair:
        repaired = _ftfy()(text)
        counts["repaired"] += repaired != text
        text = repaired
    for rule in sorted(config.rules):  # c4, which drops lines, before gopher
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
    if _is_empty(text):  # after dropping lines
        counts[EMPTY] += 1
        return None
    return text


def _is_empty(text: str) -> bool:
    return not text or text.isspace()


def is_contaminated(text: str, config: CleanConfig, counts: Counter[str]) -> bool:
    """True if a training document overlaps the held-out set. Raises `DataError` if the set cannot be read."""
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
    try:
        import ftfy
    except ImportError:
        raise DataError("clean.repair: requires the package ftfy: pip install 'xlpretrain[corpora]'") from None
    # Repair wrong decoding only; quotes, character widths and line ends are part of the corpus.
    config = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, fix_line_breaks=False,
        unescape_html=False, remove_terminal_escapes=False, remove_control_chars=False, normalization=None,
    )  # fmt: skip
    return lambda text: str(ftfy.fix_text(text, config))
