"""The configuration of a dataset: what is read, how it is cut and encoded, and where it goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_pipelines.cleaning.clean import CleanConfig
from data_pipelines.execution.cores import usable_cores
from data_pipelines.sources.config import Source
from data_pipelines.tokenizing.config import LARGEST_BLOCK, SMALLEST_BLOCK, SentenceConfig, TokenizerConfig
from xlpretrain.schema import Problem, Section


class SplitConfig(Section):
    """The share of the documents that is held out; a document's split depends on its text alone."""

    valid: float = Field(0.05, ge=0, lt=1)
    """For evaluation during training."""
    test: float = Field(0.0, ge=0, lt=1)
    """For evaluation at the very end."""

    def problems(self) -> Iterator[Problem]:
        if self.valid + self.test >= 1:
            yield "valid", f"valid and test leave nothing to train on: {self.valid} + {self.test}"


class DataConfig(Section):
    """Everything `xlpretrain data build` needs."""

    out: Path
    """The folder to make: out/train, out/valid, out/test, out/tokenizer."""
    sources: tuple[Source, ...] = Field(min_length=1)
    """Sources to read; relative paths start at the current folder."""
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
    on_bad_record: Literal["stop", "skip"] = "stop"
    """Policy for a record that is not text (a line that is not JSON, a field that is missing or null, text that is not
    UTF-8 or has half of a surrogate pair). stop: end the build with its place; skip: leave it out and count it."""
    block_tokens: int | None = Field(None, ge=SMALLEST_BLOCK, le=LARGEST_BLOCK)
    """Tokens in a block, a power of two; by default 16,384 to 1,048,576, so that there are about a thousand blocks."""
    shard_bytes: int = Field(1 << 30, ge=1)
    """A shard is closed after the block with which it reaches this size."""

    def problems(self) -> Iterator[Problem]:
        if self.block_tokens is not None and self.block_tokens & (self.block_tokens - 1):
            yield "block_tokens", f"must be a power of two, got {self.block_tokens}"
        if sum(getattr(source, "path", None) == "-" for source in self.sources) > 1:
            yield "sources", "only one of them can be standard input"
