"""Multi-head attention over relative positions and a memory (Transformer-XL, arXiv:1901.02860, section 3.3).

Legend: B rows, T new tokens (the queries), M remembered positions, K = M + T keys, N heads, H width of a head,
D d_model, R = K + 1 distances: K, K-1, .., 1, 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def relative_shift(scores: Float[Tensor, "B N T R"]) -> Float[Tensor, "B N T K"]:
    """Scores by distance into scores by key, without a copy: out[.., t, k] = scores[.., t, T - t + k].

    Row t of the input holds the distances K, .., 0 and query t stands at M + t, so key k <= M + t is at distance
    M + t - k, which is column T - t + k. In a row-major matrix of K + 1 columns that element has the flat index
    t*(K+1) + T - t + k = T + t*K + k: dropping the first T elements and reading rows of K is the whole shift.
    Keys after the query (k > M + t) get elements of the next row, finite and without meaning: mask them.

    The distance K, which no query has, is what makes the rows come out whole; computing it (one more column of
    the product) spares the padding copy of the original.
    """
    *leading, num_queries, num_distances = scores.shape
    return scores.flatten(-2)[..., num_queries:].view(*leading, num_queries, num_distances - 1)


def visible_keys(
    remembered: Int[Tensor, " B"], *, num_queries: int, mem_len: int, same_length: bool
) -> Bool[Tensor, "B T K"]:
    """Which keys a query may attend: those not after it, and of the memory the newest `remembered`.

    With `same_length`, and a memory, only the newest `mem_len` keys up to the query itself: as many for the first
    query of a row as for the last.
    """
    keys = torch.arange(mem_len + num_queries, device=remembered.device)
    queries = keys[mem_len:, None]
    visible = keys <= queries
    if same_length and mem_len > 0:
        visible = visible & (keys > queries - mem_len)
    return visible & (keys >= mem_len - remembered[:, None, None])


class RelativeAttention(nn.Module):
    """Equation (3) of the paper: score = ((q + u) k + (q + v) W_r R[distance]) / sqrt(H), softmax over the keys.

    No projection has a bias. u is `content_bias` (the originals' r_w_bias), v is `position_bias` (r_r_bias).
    """

    def __init__(self, *, d_model: int, num_heads: int, d_head: int, dropout: float):
        super().__init__()
        self.num_heads, self.d_head = num_heads, d_head
        self.query = nn.Linear(d_model, num_heads * d_head, bias=False)
        self.key = nn.Linear(d_model, num_heads * d_head, bias=False)
        self.value = nn.Linear(d_model, num_heads * d_head, bias=False)
        self.distance = nn.Linear(d_model, num_heads * d_head, bias=False)
        self.output = nn.Linear(num_heads * d_head, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries_BTD: Float[Tensor, "B T D"],
        context_BKD: Float[Tensor, "B K D"],
        distances_RD: Float[Tensor, "R D"],
        mask_BTK: Float[Tensor, "B T K"],
        *,
        content_bias_NH: Float[Tensor, "N H"],
        position_bias_NH: Float[Tensor, "N H"],
    ) -> Float[Tensor, "B T D"]:
        """The attended values of the context, projected back to D.

        `mask_BTK` is added to the scores: 0 where a key may be seen, the lowest finite number where not, so that
        even a query which may see nothing gets an average and no NaN. The softmax is in fp32.
        """
        query_BTNH = self._split(self.query(queries_BTD))
        key_BKNH = self._split(self.key(context_BKD))
        value_BKNH = self._split(self.value(context_BKD))
        distance_RNH = self._split(self.distance(distances_RD))

        # Scaling the queries is scaling the sum of both scores, on a tensor K/H times smaller.
        scale = self.d_head**-0.5
        content_BNTK = torch.einsum("btnh,bknh->bntk", (query_BTNH + content_bias_NH) * scale, key_BKNH)
        position_BNTR = torch.einsum("btnh,rnh->bntr", (query_BTNH + position_bias_NH) * scale, distance_RNH)
        scores_BNTK = content_BNTK + relative_shift(position_BNTR) + mask_BTK[:, None]
        weights_BNTK = torch.softmax(scores_BNTK, dim=-1, dtype=torch.float32).to(value_BKNH.dtype)
        attended_BTNH = torch.einsum("bntk,bknh->btnh", self.dropout(weights_BNTK), value_BKNH)
        output_BTD: Tensor = self.output(attended_BTNH.flatten(-2))
        return output_BTD

    def flops_per_token(self, seq_len: int, mem_len: int) -> float:
        """Forward and backward, per new token; the projection of the distances, shared by all rows, is left out.

        A memory position is projected to a key and a value like a new token, but no gradient goes on from there:
        4 FLOPs per weight, not 6. Scores by content, by position, and the weighted sum: 6 FLOPs per key forward.
        """
        projection = self.query.weight.numel()
        attention = 18.0 * self.num_heads * self.d_head * (seq_len + mem_len)
        return 6.0 * 4 * projection + 4.0 * 2 * projection * mem_len / seq_len + attention

    def _split(self, projected: Tensor) -> Tensor:
        """The heads of a projection as a dimension of their own."""
        return projected.view(*projected.shape[:-1], self.num_heads, self.d_head)
