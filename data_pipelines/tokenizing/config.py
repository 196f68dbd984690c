"""The sections `tokenizer` and `sentences` of a dataset's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from xlpretrain.schema import Problem, Section

SMALLEST_BLOCK, LARGEST_BLOCK = 256, 1 << 20


class TokenizerConfig(Section):
    """A tokenizer: trained on the training documents, or brought along."""

    path: Path | None = None
    """A SentencePiece model, a tokenizer.json, or a folder that holds one of them, to use as it is; the other keys then
    mean nothing."""
    vocab_size: int = Field(32000, ge=16)
    """Pieces in the vocabulary, special symbols included."""
    model_type: Literal["unigram", "bytes", "word"] = "unigram"
    """A SentencePiece model; or every byte a token (enwik8); or every word between spaces, and every end of a line, the
    most frequent ones that vocab_size has room for (WikiText-103)."""
    byte_fallback: bool = False
    """Characters without a piece of their own become bytes instead of unknown."""
    normalization: Literal["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"] = "nmt_nfkc"
    """SentencePiece's normalization of the text; the _cf ones also fold case."""
    lowercase: bool = False
    """Fold case, as the uncased models do."""
    strip_accents: bool = False
    """Drop accents and all other combining marks, as the uncased BERT and ALBERT do; for languages where these are but
    accents."""
    character_coverage: float = Field(0.9995, gt=0.9, le=1)
    """The share of the characters that get a piece of their own; the rest are unknown."""
    input_sentence_size: int = Field(500_000, ge=1)
    """Train on so many sentences, from documents drawn at random; more cost time and memory. Sources have the parts of
    it that their `weight` says."""

    def problems(self) -> Iterator[Problem]:
        given = self.model_fields_set - {"path"}
        if self.path is not None and given:
            yield "path", f"a tokenizer that is brought along cannot be trained: remove {', '.join(sorted(given))}"
        trained_only = {"normalization", "lowercase", "strip_accents", "character_coverage", "byte_fallback"}
        if self.model_type != "unigram" and (unused := sorted(given & trained_only)):
            yield "model_type", f"{self.model_type} takes text as it is: remove {', '.join(unused)}"
        if self.model_type == "bytes" and "vocab_size" in given:
            yield "vocab_size", "means nothing for bytes: remove it"


class SentenceConfig(Section):
    """The rules for ends of sentences."""

    splitter: Literal["sentencex", "lines", "spaces"] = "sentencex"
    """sentencex: by that library; lines: one sentence per line; spaces: between spaces, for Thai and Lao, which put
    them between sentences and clauses, not between words, and mark no ends of sentences otherwise."""
    language: str = "en"
    """The language of the text, as an ISO 639 code."""
    line_ends: bool = False
    """End a sentence at each line end, too; for text that is not wrapped at a fixed width."""
