"""The configuration of a dataset: what is read, how it is cut and encoded, and where it goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from xlpretrain.schema import Choice, Problem, Section

SMALLEST_BLOCK, LARGEST_BLOCK = 256, 1 << 20


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Paths = str | tuple[str, ...]


class TextSource(Section):
    """Plain text files, also as .gz or .zst."""

    type: Literal["text"] = "text"
    path: Paths
    """A file, a folder (every file under it), a glob such as corpus/**/*.txt, or a list of these."""
    split: Literal["files", "blank_lines"] = "files"
    """What a document is: a whole file, or what stands between blank lines."""


class JsonlSource(Section):
    """Files of one JSON object a line, also as .gz or .zst."""

    type: Literal["jsonl"] = "jsonl"
    path: Paths
    """A file, a folder (every file under it), a glob such as corpus/*.jsonl, or a list of these."""
    field: str = "text"
    """The key that holds a document's text."""


class PythonDocsSource(Section):
    """The docstrings of installed Python packages, a document a module, each paragraph once."""

    type: Literal["python_docs"] = "python_docs"
    packages: tuple[str, ...] = ("torch", "numpy", "sympy")
    """Packages to read; those that are not installed are left out."""
    stdlib: bool = True
    """Read the standard library and Python's help topics too."""


Source = Annotated[
    TextSource | JsonlSource | PythonDocsSource,
    Choice({"text": TextSource, "jsonl": JsonlSource, "python_docs": PythonDocsSource}),
]


class TokenizerConfig(Section):
    """A SentencePiece tokenizer: trained on the training documents, or brought along."""

    path: Path | None = None
    """A SentencePiece model, or a WordPiece tokenizer.json, to use as it is; the other keys then mean nothing."""
    vocab_size: int = Field(32000, ge=16)
    """Pieces in the vocabulary, special symbols included."""
    model_type: Literal["unigram"] = "unigram"
    """The kind of SentencePiece model."""
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
    """Train on so many sentences, from documents drawn at random; more cost time and memory."""

    def problems(self) -> Iterator[Problem]:
        given = self.model_fields_set - {"path"}
        if self.path is not None and given:
            yield "path", f"a tokenizer that is brought along cannot be trained: remove {', '.join(sorted(given))}"


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


class DataConfig(Section):
    """Everything `xlpretrain data build` needs."""

    out: Path
    """The folder to make: out/train, out/valid, out/test, out/tokenizer."""
    sources: tuple[Source, ...] = Field(min_length=1)
    """What to read; relative paths start at the current folder."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    splits: SplitConfig = SplitConfig()
    sentences: SentenceConfig = SentenceConfig()
    seed: int = Field(1, ge=0, lt=1 << 64)
    """Orders the documents."""
    workers: int = Field(default_factory=_usable_cores, ge=1)
    """Processes that read and encode; the dataset does not depend on it."""
    block_tokens: int | None = Field(None, ge=SMALLEST_BLOCK, le=LARGEST_BLOCK)
    """Tokens in a block, a power of two; by default 16,384 to 1,048,576, so that there are about a thousand blocks."""
    shard_bytes: int = Field(1 << 30, ge=1)
    """A shard is closed after the block with which it reaches this size."""

    def problems(self) -> Iterator[Problem]:
        if self.block_tokens is not None and self.block_tokens & (self.block_tokens - 1):
            yield "block_tokens", f"must be a power of two, got {self.block_tokens}"
