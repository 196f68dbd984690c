"""Causal language modelling: each token predicts the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveInt

from xlpretrain.data.manifest import Manifest
from xlpretrain.data.stream import NextTokenRows, Row
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.objectives.objective import Batch, Head, Loss, Objective, predict_tokens


class CausalLM(Objective):
    """-log p(token | the tokens before it), for every token of a row but its first."""

    type: Literal["causal_lm"] = "causal_lm"
    """Which objective this is."""
    seq_len: PositiveInt = 512
    """Tokens that a row adds to its stream."""

    needs: ClassVar[frozenset[str]] = frozenset({"causal"})
    terms: ClassVar[tuple[str, ...]] = ("lm",)

    @property
    def window(self) -> int:
        """The inputs and the last one's target."""
        return self.seq_len + 1

    @property
    def stride(self) -> int:
        """A row's last target is the next row's first input."""
        return self.seq_len

    def collator(self, tokenizer: Tokenizer, *, seed: int) -> CausalLMCollator:
        """The CPU half, which draws nothing."""
        return CausalLMCollator(seq_len=self.seq_len, pad=tokenizer.vocabulary.pad)

    def evaluation_rows(self, manifest: Manifest, *, num_tokens: int, num_streams: int, mem_len: int) -> NextTokenRows:
        """Each token a target exactly once."""
        return NextTokenRows(manifest, num_tokens, num_streams, self.stride, mem_len)

    def head(self, backbone: Backbone) -> CausalLMHead:
        """The device half."""
        return CausalLMHead(backbone.output_layer())


@dataclass(frozen=True)
class CausalLMCollator:
    """Rows of up to seq_len + 1 tokens into inputs and the same tokens shifted by one.

    A row of n tokens has n - 1 targets; shorter rows, empty ones too, are padded on the right to the same shape.
    The padding enters the memory, so no row may remember a shorter one.
    """

    seq_len: int
    pad: int

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """A batch of as many rows, which may be none."""
        windows = np.full((len(rows), self.seq_len + 1), self.pad, dtype=np.int64)
        lengths = np.zeros((len(rows), 1), dtype=np.int64)
        for index, row in enumerate(rows):
            windows[index, : len(row.tokens)] = row.tokens
            lengths[index] = max(len(row.tokens) - 1, 0)
        inputs = BackboneInput(
            tokens=torch.from_numpy(windows[:, :-1].copy()),
            remembered=torch.tensor([row.remembered for row in rows], dtype=torch.int64),
        )
        at = np.flatnonzero(np.arange(self.seq_len) < lengths)
        targets = {"lm": torch.from_numpy(windows[:, 1:].flatten()[at]), "lm_at": torch.from_numpy(at)}
        return Batch(inputs, targets, {"lm": len(at)})


class CausalLMHead(Head):
    """The vocabulary projection and the summed loss of the targets that are there."""

    def __init__(self, output: OutputLayer):
        super().__init__()
        self.output = output

    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        """The sum over the targets that are there, and each one's loss."""
        total, scores = predict_tokens(self.output, hidden.tokens, batch, "lm")
        return Loss({"lm": total}, {"lm": scores})

    def flops_per_token(self) -> float:
        """Forward and backward of the output layer."""
        return self.output.flops_per_token()
