"""The configuration of a dataset: sources, cleaning, tokenizer, splits and output."""

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
    """Shares of the documents to hold out. A document's split depends on its text alone."""

    valid: float = Field(0.05, ge=0, lt=1)
    """Share for evaluation during training."""
    test: float = Field(0.0, ge=0, lt=1)
    """Share for the final evaluation."""

    def problems(self) -> Iterator[Problem]:
        if self.valid + self.test >= 1:
            yield "valid", f"valid and test leave nothing to train on: {self.valid} + {self.test}"


class DataConfig(Section):
    """Everything `xlpretrain data build` needs."""

    out: Path
    """Output folder; gets out/train, out/valid, out/test and out/tokenizer."""
    sources: tuple[Source, ...] = Field(min_length=1)
    """Sources to read; relative paths are relative to the working directory."""
    clean: CleanConfig = CleanConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    splits: SplitConfig = SplitConfig()
    sentences: SentenceConfig = SentenceConfig()
    seed: int = Field(1, ge=0, lt=1 << 64)
    """Seed of the document order."""
    workers: int = Field(default_factory=usable_cores, ge=1)
    """Number of processes that read and encode; the dataset does not depend on it."""
    task_bytes: int | None = Field(None, ge=1 << 16)
    """Bytes of text per task (default: 8 to 128 MiB, depending on the corpus size). A worker needs a few times as much
    memory. The dataset does not depend on it."""
    on_bad_record: Literal["stop", "skip"] = "stop"
    """Policy for invalid records (a line that is not JSON, a missing or null field, text that is not UTF-8 or contains
    a lone surrogate). stop: fail and name the record; skip: leave it out and count it."""
    block_tokens: int | None = Field(None, ge=SMALLEST_BLOCK, le=LARGEST_BLOCK)
    """Tokens per block, a power of two (default: 16,384 to 1,048,576, for about a thousand blocks)."""
    shard_bytes: int = Field(1 << 30, ge=1)
    """Minimum size of a shard; it is closed after the block that reaches this size."""

    def problems(self) -> Iterator[Problem]:
        if self.block_tokens is not None and self.block_tokens & (self.block_tokens - 1):
            yield "block_tokens", f"must be a power of two, got {self.block_tokens}"
        if sum(getattr(source, "path", None) == "-" for source in self.sources) > 1:
            yield "sources", "only one source can read standard input"
