"""A micro-batch as in training, without data: random tokens, laid out and masked by the objective's own collator."""

from __future__ import annotations

import numpy as np
import torch

from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.samples import PairTarget, Sample, TokenSpan
from xlpretrain.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer, Vocabulary
from xlpretrain.models.backbone import Backbone
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.objectives.target_clusters import with_target_clusters

_SENTENCE = 20
"""Tokens of a sentence."""


class ExampleTokenizer(Tokenizer):
    """A vocabulary of a given size, in which every token is a word."""

    def __init__(self, vocab_size: int):
        roles = {role: token for token, role in enumerate(SPECIAL_TOKENS)}
        self.vocabulary = Vocabulary(size=vocab_size, **roles)

    def word_starts(self) -> np.ndarray:
        """All tokens."""
        return np.ones(self.vocabulary.size, dtype=bool)


def example_batch(config: RunConfig, *, vocab_size: int, num_samples: int, backbone: Backbone | None = None) -> Batch:
    """A micro-batch of full-length samples whose memory is full, on the CPU.

    backbone: the model's, whose adaptive softmax, if any, needs the targets' clusters; they are distributed as in data
    sorted by frequency.
    """
    rng = np.random.default_rng(0)
    collate = with_target_clusters(config.objective.collator(ExampleTokenizer(vocab_size), seed=config.seed), backbone)
    with torch.device("cpu"):
        return collate([_sample(config, rng, vocab_size, stream) for stream in range(num_samples)])


def _sample(config: RunConfig, rng: np.random.Generator, vocab_size: int, stream: int) -> Sample:
    objective = config.objective
    length = objective.span_len
    num_texts = getattr(objective, "max_texts", 0)  # of objectives that lay out pairs of sentences
    if num_texts and objective.token_layout is not None:
        length -= objective.token_layout.num_symbols(num_texts)
    span = _span(rng, length, vocab_size)
    elsewhere = _span(rng, objective.random_segment, vocab_size) if objective.random_segment else None
    return Sample(
        span.tokens,
        span.document_ends,
        span.sentence_ends,
        stream=stream,
        epoch=0,
        sample_index=stream,
        mem_valid_len=config.model.mem_len,
        reversed=objective.bidirectional_streams and stream % 2 == 1,
        random_segment=elsewhere,
        pair_target=PairTarget(split=length // 2 if num_texts != 1 else length, label=stream % 2),
    )


def _span(rng: np.random.Generator, length: int, vocab_size: int) -> TokenSpan:
    """Tokens with the frequencies of Zipf's law, without special ones, in sentences of equal length."""
    num_special = len(SPECIAL_TOKENS)
    ranks = np.exp(rng.random(length) * np.log(max(vocab_size - num_special, 1))).astype(np.int64)
    ends = np.arange(_SENTENCE - 1, length, _SENTENCE)
    return TokenSpan(np.minimum(num_special - 1 + ranks, vocab_size - 1), ends[:0], ends)
