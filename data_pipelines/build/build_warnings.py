"""Warnings about text that the tokenizer or the sample length will distort, printed after a successful build."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from data_pipelines.config import DataConfig
from data_pipelines.stages.encode import SAMPLE_TOKENS
from data_pipelines.stages.splits import groups
from data_pipelines.tokenizing.train import RESERVED

MOST_UNKNOWN = MOST_LONG = 0.01
"""Thresholds, as shares of the tokens."""


def find_warnings(config: DataConfig, encoded: Mapping[str, int], trained_on: Mapping[str, int]) -> Iterator[str]:
    """The warnings of a build. encoded, trained_on: the counts of the encoding and tokenizer stages."""
    if left_out := trained_on.get("left out", 0):
        yield (
            f"the tokenizer was not trained on {left_out:,} of {trained_on['bytes'] + left_out:,} bytes: SentencePiece"
            f" reserves the character {RESERVED} (U+{ord(RESERVED):04X}), so it becomes an unknown token"
        )
    for group in groups(config):
        tokens, unknown, long = (encoded.get(f"{what} in {group.folder}", 0) for what in ("tokens", "unknown", "long"))
        if unknown > MOST_UNKNOWN * tokens:
            yield (
                f"{group.folder}: {unknown / tokens:.1%} of the tokens are unknown; set tokenizer.byte_fallback=true or"
                " a higher tokenizer.character_coverage or vocab_size, or use a tokenizer trained on such text"
            )
        if long > MOST_LONG * tokens:
            yield (
                f"{group.folder}: {long / tokens:.1%} of the tokens are in sentences longer than {SAMPLE_TOKENS}"
                " tokens, which are cut when samples are made; set sentences.language, or sentences.line_ends=true if"
                " no sentence spans several lines, or sentences.splitter=spaces for Thai and Lao"
            )
