"""The parts a Transformer-XL is made of, beside its attention. Shapes as in `attention.py`; F is d_ff."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xlpretrain.models.attention import RelativeAttention


def encode_distances(
    num_keys: int, d_model: int, *, clamp_len: int | None, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "R D"]:
    """The sinusoids of the distances num_keys, .., 1, 0: all sines, then all cosines (not interleaved).

    Distances beyond `clamp_len` count as `clamp_len`. Computed in fp32: bf16 cannot tell 256 from 257.
    """
    distances = torch.arange(num_keys, -1, -1, device=device, dtype=torch.float32)
    if clamp_len is not None:
        distances = distances.clamp(max=clamp_len)
    frequencies = 10000.0 ** (-torch.arange(0, d_model, 2, device=device, dtype=torch.float32) / d_model)
    angles = torch.outer(distances, frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, linear, dropout."""

    def __init__(self, *, d_model: int, d_ff: int, dropout: float):
        super().__init__()
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The new contents of the residual."""
        output: Tensor = self.dropout(self.outer(self.dropout(torch.relu(self.inner(hidden)))))
        return output

    def flops_per_token(self) -> float:
        """Forward and backward."""
        return 6.0 * (self.inner.weight.numel() + self.outer.weight.numel())


class DecoderLayer(nn.Module):
    """Attention over memory and new tokens, then a feed-forward, each with its residual and layer norm.

    Post-norm: norm(x + f(x)). Pre-norm: x + f(norm(x)), the memory normed like the new tokens; as in the originals,
    no further norm follows the last layer.
    """

    def __init__(
        self,
        attention: RelativeAttention,
        feed_forward: FeedForward,
        *,
        d_model: int,
        eps: float,
        dropout: float,
        pre_norm: bool,
    ):
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(d_model, eps=eps)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.LayerNorm(d_model, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B M D"],
        distances: Float[Tensor, "R D"],
        mask: Float[Tensor, "B T K"],
        content_bias: Float[Tensor, "N H"],
        position_bias: Float[Tensor, "N H"],
    ) -> Float[Tensor, "B T D"]:
        """The hidden states after this layer; `memory` holds earlier inputs of this same layer."""
        context = torch.cat([memory, hidden], dim=1)
        if self.pre_norm:
            context = self.attention_norm(context)
        queries = context[:, memory.shape[1] :]
        attended = self.attention(
            queries, context, distances, mask, content_bias_NH=content_bias, position_bias_NH=position_bias
        )
        hidden = hidden + self.dropout(attended)
        if self.pre_norm:
            hidden = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        else:
            hidden = self.attention_norm(hidden)
            hidden = self.feed_forward_norm(hidden + self.feed_forward(hidden))
        return hidden

    def flops_per_token(self, seq_len: int, mem_len: int) -> float:
        """Forward and backward."""
        return self.attention.flops_per_token(seq_len, mem_len) + self.feed_forward.flops_per_token()
