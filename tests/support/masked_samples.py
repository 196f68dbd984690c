"""Samples and a collator for masked language models."""

from __future__ import annotations

import numpy as np

from xlpretrain.data.samples import PairTarget, Sample
from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST
from xlpretrain.objectives.masked_lm import MaskedLMCollator
from xlpretrain.objectives.token_masking import TokenMasker

NONE = np.array([], dtype=np.int64)


SIZE = 1000


SPECIAL = Vocabulary(size=SIZE, pad=0, unk=1, cls=2, sep=3, mask=4, eod=5)


WORD_STARTS = np.arange(SIZE) % 3 != 0  # a third of the tokens continue a word


def _row(tokens, split=None, label=0, *, sample=0, epoch=0):
    return Sample(
        tokens=np.array(tokens, dtype=np.uint16),
        document_ends=NONE,
        sentence_ends=NONE,
        stream=0,
        epoch=epoch,
        sample_index=sample,
        pair_target=PairTarget(len(tokens) if split is None else split, label),
    )


def _collator(*, seq_len=16, task="sop", seed=0, **rules):
    masking = {
        "mask": SPECIAL.mask,
        "unknown": SPECIAL.unk,
        "rate": 0.15,
        "max_predictions": None,
        "max_ngram": 3,
        **rules,
    }
    return MaskedLMCollator(seq_len, SPECIAL, CLS_FIRST, TokenMasker(WORD_STARTS, **masking), task, seed)
