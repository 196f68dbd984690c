"""What the models with relative positions have in common: Transformer-XL and XLNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from xlpretrain.models.attention import RelativeAttention
from xlpretrain.models.stack import StackConfig
from xlpretrain.schema import Problem


class RelativeConfig(StackConfig):
    """The keys that both have, beside those of every stack of layers."""

    clamp_len: Annotated[int, Field(ge=-1)] | None = None
    """Distances of more than this many tokens, either way, count as this many; null or -1: no limit."""
    untie_r: bool = True
    """Whether each layer that has weights of its own has its own attention biases; else all layers share them."""
    initial_memory: Literal["none", "zeros"] = "none"
    """What a stream without a past attends: nothing, or zeros as in the TensorFlow originals (and, for Transformer-XL,
    in transformers)."""

    def problems(self) -> Iterator[Problem]:
        """What is wrong between keys."""
        yield from super().problems()
        if self.d_model % 2:
            yield "d_model", f"must be even (half sines, half cosines), got {self.d_model}"
        if self.clamp_len == 0:
            yield "clamp_len", "must be positive, or null for no limit, got 0"

    @property
    def longest_distance(self) -> int | None:
        """Beyond which distances are alike; None: there is no limit."""
        return None if self.clamp_len == -1 else self.clamp_len

    def attention(self, *, bidirectional: bool) -> Callable[[], RelativeAttention]:
        """What makes a layer's attention. bidirectional: with segments, and for both directions."""
        return partial(
            RelativeAttention,
            d_model=self.d_model,
            num_heads=self.num_heads,
            d_head=self.head_size,
            dropout=self.attention_dropout,
            bidirectional=bidirectional,
        )

    def draw_biases(self) -> nn.Parameter:
        """A bias of attention: [1, N, H] for all layers, or, untied, one for each layer with weights of its own."""
        shape = (self.num_own_layers if self.untie_r else 1, self.num_heads, self.head_size)
        bias = nn.Parameter(torch.randn(shape) * self.init_std)
        bias.num_fused = shape[0]  # type: ignore[attr-defined]  # to an optimizer each layer's is a tensor of its own
        return bias
