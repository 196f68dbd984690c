"""Warnings of a successful build: text that a model will not see as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from data_pipelines.config import DataConfig
from data_pipelines.stages.encode import SAMPLE_TOKENS
from data_pipelines.stages.splits import groups
from data_pipelines.tokenizing.train import RESERVED

MOST_UNKNOWN = MOST_LONG = 0.01
"""Share of the tokens."""


def find_warnings(config: DataConfig, encoded: Mapping[str, int], trained_on: Mapping[str, int]) -> Iterator[str]:
    """The warnings of a build: encoded, trained_on are the counts of encoding and of training the tokenizer."""
    if left_out := trained_on.get("left out", 0):
        yield (
            f"the tokenizer was not trained on {left_out:,} bytes of {trained_on['bytes'] + left_out:,}: SentencePiece"
            f" keeps the character {RESERVED} (U+{ord(RESERVED):04X}) to itself, so it is unknown"
        )
    for group in groups(config):
        tokens, unknown, long = (encoded.get(f"{what} in {group.folder}", 0) for what in ("tokens", "unknown", "long"))
        if unknown > MOST_UNKNOWN * tokens:
            yield (
                f"{group.folder}: {unknown / tokens:.1%} of the tokens are unknown; use tokenizer.byte_fallback=true, a"
                " higher tokenizer.character_coverage or vocab_size, or a tokenizer that was trained on such text"
            )
        if long > MOST_LONG * tokens:
            yield (
                f"{group.folder}: {long / tokens:.1%} of the tokens are in sentences of more than {SAMPLE_TOKENS},"
                " which samples cut in pieces; set sentences.language, or sentences.line_ends=true if no line ends"
                " within a sentence, or sentences.splitter=spaces for Thai and Lao"
            )
