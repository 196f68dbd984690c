"""The largest micro-batches that a run can meet, made of its config and the size of its vocabulary alone.

Samples are as long as the objective lets them be, hold no special tokens, and have all the memory there is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.examples.base import make_sample
from xlpretrain.data.samples import PairTarget, Sample, TokenSpan
from xlpretrain.data.storage.dataset import EMPTY_ENDS
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.models.backbone import Backbone
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.target_clusters import model_collator
from xlpretrain.objectives.tasks.base import Task


def full_batch(config: RunConfig, backbone: Backbone, *, vocab_size: int, num_samples: int, seed: int = 0) -> Batch:
    """A micro-batch of full samples of random tokens, on the CPU, by the run's own collator.

    Of a mixed objective's parts, it is of the one with the most predictions.
    """
    collate = model_collator(config.objective, _SizeOnly(vocab_size), seed=config.seed, backbone=backbone)
    batches = []
    for part, name in enumerate(config.objective.by_part or [None]):
        alone = config if name is None else config.of_part(name, "")
        generator = np.random.default_rng(seed)
        samples = [_sample(alone, number, vocab_size, generator) for number in range(num_samples)]
        batches.append(collate([replace(sample, part=part) for sample in samples]))
    return max(batches, key=lambda batch: sum(batch.counts.values()))


class _SizeOnly(Tokenizer):
    """A vocabulary of which only the size is known: the first six tokens are special, and each one begins a word."""

    def __init__(self, size: int):
        self.vocabulary = Vocabulary(size, *range(6))

    def word_starts(self) -> np.ndarray:
        return np.ones(self.vocabulary.size, bool)


def _sample(config: RunConfig, number: int, vocab_size: int, generator: np.random.Generator) -> Sample:
    objective, length, num_texts = config.objective, config.objective.span_len, 2
    if isinstance(objective, Task):
        example = objective.full_example(_tokens(length, vocab_size, generator).tolist())
        return make_sample(example, sample_index=number, stream=number)
    if isinstance(objective, MaskedLM):
        length, num_texts = objective.pairing_rules.max_tokens, objective.max_texts
    return Sample(
        _tokens(length, vocab_size, generator),
        EMPTY_ENDS,
        np.array([length // 2, length - 1]),
        stream=number,
        epoch=0,
        sample_index=number,
        mem_valid_len=config.model.mem_len,
        reversed=objective.bidirectional_streams and number % 2 == 1,
        random_segment=TokenSpan(
            _tokens(objective.random_segment, vocab_size, generator),
            EMPTY_ENDS,
            np.array([objective.random_segment - 1]),
        )
        if objective.random_segment
        else None,
        pair_target=PairTarget(split=length // num_texts, label=number % 2),
    )


def _tokens(length: int, vocab_size: int, generator: np.random.Generator) -> np.ndarray:
    return generator.integers(min(6, vocab_size - 1), vocab_size, length)
