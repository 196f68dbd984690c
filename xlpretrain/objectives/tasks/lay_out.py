"""Inputs of the examples of a task: texts laid out with special tokens, truncated and padded.

Shapes: B samples, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xlpretrain.data.samples import Example, Sample
from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.data.tokenizers.token_layout import LaidOut, TokenLayout
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.packing import valid_tokens
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.objectives.tasks.base import example_of

_MULTIPLE = 8  # micro-batches are padded to a multiple of this

Parts = Sequence[Sequence[int]]
"""Token ids of one or two texts."""


def lay_out(parts: Parts, layout: TokenLayout, vocabulary: Vocabulary, *, seq_len: int) -> LaidOut:
    """Lay out one sample. If it is too long, the longer text is truncated first."""
    first, second = list(parts[0]), list(parts[1]) if len(parts) > 1 else []
    texts = [first, second] if second else [first]
    room = seq_len - layout.num_symbols(len(texts))
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return layout.lay_out(texts, vocabulary)


def padded(samples: Sequence[LaidOut], vocabulary: Vocabulary, *, seq_len: int, whole: bool = False) -> BackboneInput:
    """The inputs of any number of samples, including none, padded on the right to the longest one: [B, T].

    whole: pad to `seq_len` instead.
    """
    longest = max((len(sample.tokens) for sample in samples), default=1)
    shape = (len(samples), seq_len if whole else min(-(-longest // _MULTIPLE) * _MULTIPLE, seq_len))
    tokens, segments = np.full(shape, vocabulary.pad, np.int64), np.zeros(shape, np.int64)
    valid = np.zeros(shape, bool)
    for i, sample in enumerate(samples):
        length = len(sample.tokens)
        tokens[i, :length], segments[i, :length], valid[i, :length] = sample.tokens, sample.segments, True
    valid_at, valid_from = valid_tokens(valid)
    return BackboneInput(
        tokens=torch.from_numpy(tokens),
        mem_valid_len=torch.zeros(len(samples), dtype=torch.int64),
        attention_mask=torch.from_numpy(valid),
        segments=torch.from_numpy(segments),
        valid_at=valid_at,
        valid_from=valid_from,
    )


def targets_of(examples: Sequence[Example], term: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The targets of the samples that have one (none past the end of an evaluation), under the name of the loss term,
    the indices of these samples, under `<term>_positions`, and their weights, if any, under `<term>_weights`."""
    asked = [number for number, example in enumerate(examples) if example.target is not None]
    weights = [examples[number].weights for number in asked]
    return {
        term: torch.tensor([examples[number].target for number in asked], dtype=dtype),
        f"{term}_positions": torch.tensor(asked, dtype=torch.int64),
        **weights_tensor([weight for weight in weights if weight is not None], term),
    }


def weights_tensor(weights: Sequence[float], term: str) -> dict[str, Tensor]:
    """The weights of all targets of a term, under `<term>_weights`; nothing without any."""
    return {f"{term}_weights": torch.tensor(weights, dtype=torch.float32)} if weights else {}


def count_of(targets: Mapping[str, Tensor], term: str) -> int | float:
    """The number of targets of a term or, if they are weighted, the sum of their weights."""
    weights = targets.get(f"{term}_weights")
    return len(targets[term]) if weights is None else math.fsum(weights.tolist())


@dataclass(frozen=True)
class TextCollator:
    """Collates samples of one or two texts into tokens, padded on the right to the longest one.

    part_len: read texts in parts of this length. Then they are padded to `seq_len`, so that all ranks read equally many
    parts, which ZeRO-3 requires.
    """

    term: str
    dtype: torch.dtype
    seq_len: int
    layout: TokenLayout
    vocabulary: Vocabulary
    part_len: int | None = None

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        examples = [example_of(sample) for sample in samples]
        laid_out = [lay_out(e.parts, self.layout, self.vocabulary, seq_len=self.seq_len) for e in examples]
        targets = targets_of(examples, self.term, self.dtype)
        whole = self.part_len is not None
        inputs = padded(laid_out, self.vocabulary, seq_len=self.seq_len, whole=whole)
        return Batch(inputs, targets, {self.term: count_of(targets, self.term)}, part_len=self.part_len)
