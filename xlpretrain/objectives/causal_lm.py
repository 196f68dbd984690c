"""Causal language modeling: each token predicts the next one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Unpack

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from xlpretrain.data.evaluation_samples import NextTokenEvalSamples
from xlpretrain.data.samples import Sample
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer, Vocabulary
from xlpretrain.data.tokenizers.token_layout import DOCUMENT, TokenLayout
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.models.pretraining_model import Batch, Head, Loss
from xlpretrain.objectives.base import EvaluationStreams, HubHead, Objective, token_prediction_loss
from xlpretrain.objectives.likelihood_queries import LikelihoodQuery, stream_queries


class CausalLM(Objective):
    """-log p(token | the tokens before it), for every token of a sample except the first."""

    type: Literal["causal_lm"] = "causal_lm"
    """Kind of objective."""
    seq_len: PositiveInt = 512
    """New tokens per sample."""

    requires: ClassVar[frozenset[str]] = frozenset({"causal"})
    terms: ClassVar[tuple[str, ...]] = ("lm",)
    hub_head: ClassVar[HubHead | None] = "causal_lm"
    generates: ClassVar[bool] = True

    @property
    def token_layout(self) -> TokenLayout:
        """Texts are documents."""
        return DOCUMENT

    def likelihood_queries(self, text: Sequence[int], vocabulary: Vocabulary) -> Iterator[LikelihoodQuery]:
        """Queries for each token given those before it, starting after an end-of-document token."""
        return stream_queries([*self.token_layout.prefix(vocabulary), *text], seq_len=self.seq_len)

    @property
    def span_len(self) -> int:
        """The inputs and the last target."""
        return self.seq_len + 1

    @property
    def new_tokens(self) -> int:
        """The inputs: the last target is the first input of the next sample."""
        return self.seq_len

    @property
    def needs_boundaries(self) -> bool:
        """False: samples cross boundaries."""
        return False

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> CausalLMCollator:
        """The collator, which makes no random choices."""
        return CausalLMCollator(seq_len=self.seq_len, pad=tokenizer.vocabulary.pad)

    def evaluation_samples(self, manifest: TokenDataset, **streams: Unpack[EvaluationStreams]) -> NextTokenEvalSamples:
        """Samples in which each token is a target exactly once."""
        return NextTokenEvalSamples(manifest, new_tokens=self.new_tokens, **streams)

    def head(self, backbone: Backbone) -> CausalLMHead:
        """The head."""
        return CausalLMHead(backbone.output_layer())


@dataclass(frozen=True)
class CausalLMCollator:
    """Collates samples of up to seq_len + 1 tokens into inputs and shifted targets.

    A sample of n tokens has n - 1 targets. Shorter and empty samples are padded on the right. The padding enters the
    memory, so no later sample may use the memory of a shorter one.
    """

    seq_len: int
    pad: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
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
            causal=True,
        )
        if sum(lengths) == answers.size:
            targets = {"lm": torch.from_numpy(answers).flatten(), "lm_positions": _all_places(answers.size)}
        else:
            at = np.flatnonzero(np.arange(self.seq_len) < np.reshape(lengths, (-1, 1)))
            targets = {"lm": torch.from_numpy(answers.ravel()[at]), "lm_positions": torch.from_numpy(at)}
        return Batch(inputs, targets, {"lm": sum(lengths)})


@lru_cache(4)
def _all_places(count: int) -> Tensor:
    """Cached, since it is the same for every batch of full samples."""
    return torch.arange(count)


class CausalLMHead(Head):
    """The vocabulary projection and the summed loss of the targets."""

    def __init__(self, output: OutputLayer):
        super().__init__()
        self.output = output

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The summed loss, and the loss of each target."""
        total, scores = token_prediction_loss(self.output, hidden.tokens, batch, "lm")
        return Loss({"lm": total}, {"lm": scores})

    def flops_per_token(self) -> float:
        """FLOPs of the output layer per token, forward and backward."""
        return self.output.flops_per_token()
