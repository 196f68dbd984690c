"""The layer that all models are made of, and what stands on top of one. Shapes as in `relative_positions.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xlpretrain.models.attention import Attention
from xlpretrain.models.kernels.dropout import Dropout

Activation = Literal["relu", "gelu", "gelu_tanh"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class FeedForward(nn.Module):
    """Linear, activation, inner dropout, linear, dropout."""

    def __init__(self, *, d_model: int, d_ff: int, activation: Activation, dropout: float, inner_dropout: float):
        super().__init__()
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)
        self.inner_dropout = Dropout(inner_dropout)

    def forward(self, hidden: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        """The new contents of the residual."""
        inner = self.inner_dropout(self.activation(self.inner(hidden)))
        output: Tensor = self.dropout(self.outer(inner))
        return output

    def flops_per_token(self) -> float:
        """Forward and backward."""
        return 6.0 * (self.inner.weight.numel() + self.outer.weight.numel())


class Layer(nn.Module):
    """Attention over memory and new tokens, then a feed-forward, each with its residual and layer norm.

    Post-norm: norm(x + f(x)). Pre-norm: x + f(norm(x)), the memory normed like the new tokens; as in the originals,
    no further norm follows the last layer.
    """

    def __init__(
        self,
        attention: Attention,
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
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        hidden: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B M D"],
        mask: Float[Tensor, "B Q K"],
        *places: Any,
    ) -> Float[Tensor, "B Q D"]:
        """The hidden states after this layer: of the T tokens, then of the predictions, which no query attends.

        Args:
            memory: earlier inputs of this same layer.
            places: what this kind of attention takes beside the mask.
        """
        num_tokens, queries = mask.shape[2] - memory.shape[1], hidden
        if self.pre_norm:
            memory, queries = self.attention_norm(memory), self.attention_norm(hidden)
        attended = self.attention(queries, memory, queries[:, :num_tokens], mask, *places)
        hidden = hidden + self.dropout(attended)
        if self.pre_norm:
            hidden = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        else:
            hidden = self.attention_norm(hidden)
            hidden = self.feed_forward_norm(hidden + self.feed_forward(hidden))
        return hidden

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """Forward and backward, predictions shared out to the tokens."""
        feed_forward = self.feed_forward.flops_per_token() * (1 + num_predictions / seq_len)
        return self.attention.flops_per_token(seq_len, mem_len, num_predictions) + feed_forward


class Pooler(nn.Module):
    """What stands for a whole row: tanh of a linear map of its first token's hidden state (BERT, arXiv:1810.04805)."""

    def __init__(self, d_model: int, *, init_std: float = 0.02):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model)
        draw(self.linear, init_std, truncated=True)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One vector a row."""
        return torch.tanh(self.linear(hidden[:, 0]))


def draw(module: nn.Module, std: float, *, truncated: bool = False) -> None:
    """Weights of linear maps and embeddings from N(0, std), biases 0; norms keep their 1 and 0. For `Module.apply`.

    truncated: at two standard deviations, as TensorFlow's truncated_normal.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        if truncated:
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
