"""The configuration of a dataset: what is read, how it is cut and encoded, and where it goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_pipelines.clean import CleanConfig
from data_pipelines.source_config import Source
from xlpretrain.schema import Problem, Section

SMALLEST_BLOCK, LARGEST_BLOCK = 256, 1 << 20


def usable_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class SplitConfig(Section):
    """The share of the documents that is held out; a document's split depends on its text alone."""

    valid: float = Field(0.05, ge=0, lt=1)
    """For evaluation during training."""
    test: float = Field(0.0, ge=0, lt=1)
    """For evaluation at the very end."""

    def problems(self) -> Iterator[Problem]:
        if self.valid + self.test >= 1:
            yield "valid", f"valid and test leave nothing to train on: {self.valid} + {self.test}"


class SentenceConfig(Section):
    """Where sentences end."""

    splitter: Literal["sentencex", "lines"] = "sentencex"
    """By the sentencex library, or one sentence a line."""
    language: str = "en"
    """The language of the text, as an ISO 639 code."""
    line_ends: bool = False
    """End a sentence at each line end, too; for text that is not wrapped at a fixed width."""


class DataConfig(Section):
    """Everything `xlpretrain data build` needs."""

    out: Path
    """The folder to make: out/train, out/valid, out/test, out/tokenizer."""
    sources: tuple[Source, ...] = Field(min_length=1)
    """What to read; relative paths start at the current folder."""
    clean: CleanConfig = CleanConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    splits: SplitConfig = SplitConfig()
    sentences: SentenceConfig = SentenceConfig()
    seed: int = Field(1, ge=0, lt=1 << 64)
    """Orders the documents."""
    workers: int = Field(default_factory=usable_cores, ge=1)
    """Processes that read and encode; the dataset does not depend on it."""
    task_bytes: int | None = Field(None, ge=1 << 16)
    """Text that a worker deals with at a time (default: 8 to 128 MiB, by the size of the corpus); its memory is a few
    times that. The dataset does not depend on it."""
    block_tokens: int | None = Field(None, ge=SMALLEST_BLOCK, le=LARGEST_BLOCK)
    """Tokens in a block, a power of two; by default 16,384 to 1,048,576, so that there are about a thousand blocks."""
    shard_bytes: int = Field(1 << 30, ge=1)
    """A shard is closed after the block with which it reaches this size."""

    def problems(self) -> Iterator[Problem]:
        if self.block_tokens is not None and self.block_tokens & (self.block_tokens - 1):
            yield "block_tokens", f"must be a power of two, got {self.block_tokens}"
        if sum(getattr(source, "path", None) == "-" for source in self.sources) > 1:
            yield "sources", "only one of them can be standard input"
