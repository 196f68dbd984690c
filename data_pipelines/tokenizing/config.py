"""The sections `tokenizer` and `sentences` of a dataset's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_pipelines.tokenizing.languages import find_language_problem
from xlpretrain.schema import Problem, Section

SMALLEST_BLOCK, LARGEST_BLOCK = 256, 1 << 20


class TokenizerConfig(Section):
    """The tokenizer: trained on the training documents, or an existing one."""

    path: Path | None = None
    """An existing tokenizer to use unchanged: a SentencePiece model, a tokenizer.json, or a folder with one of them.
    The other keys must not be set."""
    vocab_size: int = Field(32000, ge=16, le=1 << 24)
    """Size of the vocabulary, including special tokens."""
    model_type: Literal["unigram", "bytes", "word"] = "unigram"
    """unigram: a SentencePiece model. bytes: every byte is a token (enwik8). word: every word between spaces and every
    line end is a token, for the vocab_size most frequent ones (WikiText-103)."""
    byte_fallback: bool = False
    """Encode characters that are not in the vocabulary as bytes instead of the unknown token."""
    normalization: Literal["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"] = "nmt_nfkc"
    """SentencePiece's text normalization; the _cf variants also fold case."""
    lowercase: bool = False
    """Fold case, as in uncased models."""
    strip_accents: bool = False
    """Strip accents and all other combining marks, as the uncased BERT and ALBERT do; only for languages where
    combining marks are no more than accents."""
    character_coverage: float = Field(0.9995, ge=0.98, le=1)
    """Share of the characters to include in the vocabulary; the rest are unknown. SentencePiece needs at least
    0.98."""
    input_sentence_size: int = Field(500_000, ge=1)
    """Number of training sentences, sampled from random documents; more cost time and memory. The sources' `weight`
    sets their shares."""

    def problems(self) -> Iterator[Problem]:
        given = self.model_fields_set - {"path"}
        if self.path is not None and given:
            yield "path", f"an existing tokenizer is not trained: remove {', '.join(sorted(given))}"
        trained_only = {"normalization", "lowercase", "strip_accents", "character_coverage", "byte_fallback"}
        if self.model_type != "unigram" and (unused := sorted(given & trained_only)):
            yield "model_type", f"{self.model_type} does not change text: remove {', '.join(unused)}"
        if self.model_type == "bytes" and "vocab_size" in given:
            yield "vocab_size", "not used by model_type bytes: remove it"


class SentenceConfig(Section):
    """The rules for splitting documents into sentences."""

    splitter: Literal["sentencex", "lines", "spaces"] = "sentencex"
    """sentencex: use that library; lines: one sentence per line; spaces: split at spaces, for Thai and Lao, which put
    spaces between sentences and clauses, not words, and have no other sentence marks."""
    language: str = "en"
    """Language of the text, as an ISO 639-1 code. sentencex has rules for about 30 languages and related ones; others
    are split like English, at the sentence marks of any script."""
    line_ends: bool = False
    """Also end a sentence at each line end; for text that is not wrapped at a fixed width."""

    def problems(self) -> Iterator[Problem]:
        if self.splitter == "sentencex" and (problem := find_language_problem(self.language)):
            yield "language", problem
