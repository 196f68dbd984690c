"""Causal language modelling: each token predicts the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from xlpretrain.data.evaluation_samples import NextTokenEvalSamples
from xlpretrain.data.samples import Sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.models.pretraining_model import Batch, Head, Loss
from xlpretrain.objectives.base import Objective, token_prediction_loss


class CausalLM(Objective):
    """-log p(token | the tokens before it), for every token of a sample but its first."""

    type: Literal["causal_lm"] = "causal_lm"
    """Kind of objective."""
    seq_len: PositiveInt = 512
    """Tokens that a sample adds to its stream."""

    requires: ClassVar[frozenset[str]] = frozenset({"causal"})
    terms: ClassVar[tuple[str, ...]] = ("lm",)

    @property
    def span_len(self) -> int:
        """The inputs and the last one's target."""
        return self.seq_len + 1

    @property
    def new_tokens(self) -> int:
        """A sample's last target is the next sample's first input."""
        return self.seq_len

    @property
    def needs_boundaries(self) -> bool:
        """Samples go on over them."""
        return False

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> CausalLMCollator:
        """The CPU half, which draws nothing."""
        return CausalLMCollator(seq_len=self.seq_len, pad=tokenizer.vocabulary.pad)

    def evaluation_samples(
        self, manifest: TokenDataset, *, num_tokens: int, num_streams: int, mem_len: int
    ) -> NextTokenEvalSamples:
        """Each token a target exactly once."""
        return NextTokenEvalSamples(manifest, num_tokens, num_streams, self.new_tokens, mem_len)

    def head(self, backbone: Backbone) -> CausalLMHead:
        """The device half."""
        return CausalLMHead(backbone.output_layer())


@dataclass(frozen=True)
class CausalLMCollator:
    """Samples of up to seq_len + 1 tokens into inputs and the same tokens shifted by one.

    A sample of n tokens has n - 1 targets; shorter samples, empty ones too, are padded on the right to the same shape.
    The padding enters the memory, so no sample may remember a shorter one.
    """

    seq_len: int
    pad: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """A batch of as many samples, which may be none."""
        tokens = np.empty((len(samples), self.seq_len), dtype=np.int64)
        answers, lengths = np.empty_like(tokens), []
        for index, sample in enumerate(samples):
            length = max(len(sample.tokens) - 1, 0)
            tokens[index, : len(sample.tokens)] = sample.tokens[: self.seq_len]
            answers[index, :length] = sample.tokens[1:]
            lengths.append(length)
            if length < self.seq_len:
                tokens[index, len(sample.tokens) :] = self.pad
        inputs = BackboneInput(
            tokens=torch.from_numpy(tokens),
            mem_valid_len=torch.tensor([sample.mem_valid_len for sample in samples], dtype=torch.int64),
        )
        if sum(lengths) == answers.size:
            targets = {"lm": torch.from_numpy(answers).flatten(), "lm_positions": _all_places(answers.size)}
        else:
            at = np.flatnonzero(np.arange(self.seq_len) < np.reshape(lengths, (-1, 1)))
            targets = {"lm": torch.from_numpy(answers.ravel()[at]), "lm_positions": torch.from_numpy(at)}
        return Batch(inputs, targets, {"lm": sum(lengths)})


@lru_cache(4)
def _all_places(count: int) -> Tensor:
    """The same for every batch of whole samples."""
    return torch.arange(count)


class CausalLMHead(Head):
    """The vocabulary projection and the summed loss of the targets that are there."""

    def __init__(self, output: OutputLayer):
        super().__init__()
        self.output = output

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The sum over the targets that are there, and each one's loss."""
        total, scores = token_prediction_loss(self.output, hidden.tokens, batch, "lm")
        return Loss({"lm": total}, {"lm": scores})

    def flops_per_token(self) -> float:
        """Forward and backward of the output layer."""
        return self.output.flops_per_token()
