"""A layer's modules as the weights and settings of `whole.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int32
from torch import Tensor, nn

from xlpretrain.models.attention import Attention, RelativeAttention
from xlpretrain.models.kernels.fused.layer.operators import WIDEST
from xlpretrain.models.kernels.fused.layer.whole import Given, Settings, Weights, whole_layer
from xlpretrain.models.kernels.fused.visibility import Visibility
from xlpretrain.models.parts.feed_forward import MLP, FeedForward


class Parts:
    """The modules of a post-norm layer that the programs compute, as published: relative attention, norms, MLP."""

    def __init__(
        self, attention: RelativeAttention, feed_forward: MLP, norms: Sequence[nn.Module], dropout: nn.Dropout
    ):
        self._attention, self._feed_forward, self._norms, self._dropout = attention, feed_forward, norms, dropout

    @classmethod
    def of(
        cls, attention: Attention, feed_forward: FeedForward, norms: Sequence[nn.Module], dropout: nn.Dropout
    ) -> Parts | None:
        """None: the programs do not compute such a layer."""
        if not isinstance(attention, RelativeAttention) or not isinstance(feed_forward, MLP):
            return None
        if not all(isinstance(norm, nn.LayerNorm | nn.RMSNorm) and norm.weight.numel() <= WIDEST for norm in norms):
            return None
        return cls(attention, feed_forward, norms, dropout)

    def compute(
        self,
        hidden: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B M D"],
        view: Visibility,
        distance: Float[Tensor, "G R N H"],
        seeds: Int32[Tensor, "4 2"] | None,
        biases: Sequence[Float[Tensor, "N H"]],
    ) -> Float[Tensor, "B Q D"]:
        """The output of the layer; see `whole_layer`. biases: of the attention, by content, position and segment."""
        return whole_layer(hidden, distance, seeds, Given(memory, view, self._settings()), self._weights(biases))

    def _settings(self) -> Settings:
        norm: Any = self._norms[0]
        return Settings(
            self._attention.num_heads,
            self._feed_forward.activation_name,
            attention_rate=self._attention.dropout.p,
            rate=self._dropout.p,
            inner_rate=self._feed_forward.inner_dropout.p,
            epsilon=norm.eps or 0.0,
            centered=isinstance(norm, nn.LayerNorm),
        )

    def _weights(self, biases: Sequence[Tensor]) -> Weights:
        attention, feed_forward = self._attention, self._feed_forward
        norms: Sequence[Any] = self._norms
        before, after = norms
        return Weights(
            query=attention.query.weight,
            key=attention.key.weight,
            value=attention.value.weight,
            output=attention.output.weight,
            content_bias=biases[0],
            position_bias=biases[1],
            segment_bias=biases[2] if len(biases) == 3 else None,
            segment_embedding=attention.segment_embedding,
            attention_norm=before.weight,
            attention_norm_bias=getattr(before, "bias", None),
            inner=feed_forward.inner.weight,
            inner_bias=feed_forward.inner.bias,
            outer=feed_forward.outer.weight,
            outer_bias=feed_forward.outer.bias,
            norm=after.weight,
            norm_bias=getattr(after, "bias", None),
        )
