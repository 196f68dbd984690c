"""Multi-head attention: by content (arXiv:1706.03762, 3.2.2), and by content, relative position and segment.

Shapes as in `relative_positions.py`; H is the width of a head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xlpretrain.models.attention_mask import AttentionMask, no_mask
from xlpretrain.models.kernels.cpu_attention import TiledAttention, TilePlan
from xlpretrain.models.kernels.dropout import WeightDropout
from xlpretrain.models.kernels.fused.operators import draw_seed, fused_relative_attention
from xlpretrain.models.kernels.position_bias import PositionBias
from xlpretrain.models.kernels.projection import Projection
from xlpretrain.models.kernels.sdpa import fused_attention, packed_attention
from xlpretrain.models.relative_positions import (
    RelativePositions,
    gather_distances,
    relative_shift,
)

Implementation = Literal["plain", "blocks", "sdpa", "fused"]


class Attention(nn.Module):
    """score = q k / sqrt(H), softmax over the keys in fp32, dropout of the weights, values, projection.

    Equivalent implementations: `plain` is the reference, `blocks` is for CPUs, and `sdpa` is for GPUs: torch's
    scaled_dot_product_attention, with everything that is added to the scores in its mask. Relative attention has
    another one for GPUs, `fused`: kernels of our own.
    """

    implementation: Implementation | None = None
    """None: chosen by device."""

    def __init__(self, *, d_model: int, num_heads: int, d_head: int, dropout: float, bias: bool):
        super().__init__()
        self.num_heads, self.d_head = num_heads, d_head
        self.query = Projection(d_model, num_heads * d_head, bias=bias)
        self.key = Projection(d_model, num_heads * d_head, bias=bias)
        self.value = Projection(d_model, num_heads * d_head, bias=bias)
        self.output = nn.Linear(num_heads * d_head, d_model, bias=bias)
        self.dropout = WeightDropout(dropout)

    def forward(
        self,
        queries_BQD: Float[Tensor, "B Q D"],
        memory_BMD: Float[Tensor, "B M D"],
        tokens_BTD: Float[Tensor, "B T D"],
        mask: AttentionMask,
    ) -> Float[Tensor, "B Q D"]:
        """Attend over memory and tokens, and project back to D. The tokens are the first T queries, and the
        memory gets no gradient."""
        implementation, scale = self._implementation(queries_BQD), self.d_head**-0.5
        if implementation == "sdpa" and may_be_by_hand(memory_BMD):
            query_BQNH, key_BKNH, value_BKNH = self._chained(queries_BQD, memory_BMD, tokens_BTD)
        else:
            query_BQNH, key_BKNH, value_BKNH = self._projected(queries_BQD, memory_BMD, tokens_BTD)
            query_BQNH, scale = query_BQNH * scale, 1.0
        if mask.offsets is not None:
            return self._packed(query_BQNH, key_BKNH, value_BKNH, mask, scale)
        if implementation == "blocks":
            plan = TilePlan(mask.added, None, self.dropout.p, self.dropout.draw())
            return self._project(TiledAttention.apply(query_BQNH, key_BKNH, value_BKNH, None, None, None, plan))  # type: ignore[no-untyped-call]
        if implementation == "plain":
            return self._attend(query_BQNH, key_BKNH, value_BKNH, mask)
        added_B1QK = mask.added[:, None] if mask.hides else None
        return self._sdpa(query_BQNH, key_BKNH, value_BKNH, mask, added_B1QK, scale)

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """FLOPs of forward and backward per new token, without the projection of distances, which all samples share.

        A memory position is projected to a key and a value like a new token, but gets no gradient: 4 FLOPs per weight
        instead of 6. Predictions are only queries, in addition to one query per token.
        """
        projection, queries = self.query.weight.numel(), 1 + num_predictions / seq_len
        projections = 6.0 * 2 * projection * (1 + queries) + 4.0 * 2 * projection * mem_len / seq_len
        return projections + 6.0 * self.num_heads * self.d_head * self._columns(seq_len, mem_len) * queries

    def _columns(self, seq_len: int, mem_len: int) -> int:
        """Number of columns in all matrix products with a query: content scores and the weighted sum of values."""
        return 2 * (seq_len + mem_len)

    def _implementation(self, hidden: Tensor) -> Implementation:
        if not hidden.numel():
            # Torch's implementation returns zeros that do not depend on the bias or, in some versions, on the queries,
            # so those parameters get no gradient, and ZeRO would wait for it.
            return "plain"
        if self.implementation is not None:
            return self.implementation
        if hidden.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return "sdpa"  # the CPU kernel needs all tensors to have one dtype
        return "blocks"

    def _attend(
        self,
        query_BQNH: Tensor,
        key_BKNH: Tensor,
        value_BKNH: Tensor,
        mask: AttentionMask,
        bias_BNQK: Tensor | None = None,
    ) -> Tensor:
        scores_BNQK = torch.einsum("bqnh,bknh->bnqk", query_BQNH, key_BKNH)
        if bias_BNQK is not None:
            scores_BNQK = scores_BNQK + bias_BNQK
        weights_BNQK = torch.softmax(scores_BNQK + mask.added[:, None], dim=-1, dtype=torch.float32)
        weights_BNQK = F.dropout(weights_BNQK.to(value_BKNH.dtype), self.dropout.p, self.training)
        return self._project(_seen(torch.einsum("bnqk,bknh->bqnh", weights_BNQK, value_BKNH), mask))

    def _sdpa(
        self,
        query_BQNH: Tensor,
        key_BKNH: Tensor,
        value_BKNH: Tensor,
        mask: AttentionMask,
        added_BNQK: Tensor | None,
        scale: float,
    ) -> Tensor:
        rate = self.dropout.p if self.training else 0.0
        attended_BQNH = fused_attention(query_BQNH, key_BKNH, value_BKNH, added_BNQK, dropout=rate, scale=scale)
        return self._project(_seen(attended_BQNH, mask))

    def _packed(
        self, query_1VNH: Tensor, key_1VNH: Tensor, value_1VNH: Tensor, mask: AttentionMask, scale: float
    ) -> Tensor:
        """Attention within each packed sample: one kernel on an accelerator, a sample at a time on a CPU."""
        assert mask.offsets is not None
        if query_1VNH.device.type != "cpu":
            rate = self.dropout.p if self.training else 0.0
            attended_VNH = packed_attention(
                query_1VNH.flatten(0, 1),
                key_1VNH.flatten(0, 1),
                value_1VNH.flatten(0, 1),
                mask.offsets,
                longest=mask.longest,
                dropout=rate,
                scale=scale,
            )
            return self._project(attended_VNH[None])
        samples = []
        for first, last in pairwise(mask.offsets.tolist()):
            query, key, value = (part[:, first:last] for part in (query_1VNH * scale, key_1VNH, value_1VNH))
            samples.append(self._attend(query, key, value, no_mask(query.flatten(-2))))
        return torch.cat(samples, dim=1)

    def _project(self, attended_BQNH: Tensor) -> Tensor:
        output_BQD: Tensor = self.output(attended_BQNH.flatten(-2))
        return output_BQD

    def _projected(self, queries_BQD: Tensor, memory_BMD: Tensor, tokens_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project queries, keys and values, and split them into heads."""
        query_BQNH = self._split(self.query(queries_BQD))
        key_BKNH, value_BKNH = (self._of_keys(linear, memory_BMD, tokens_BTD) for linear in (self.key, self.value))
        return query_BQNH, key_BKNH, value_BKNH

    def _chained(self, queries_BQD: Tensor, memory_BMD: Tensor, tokens_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with one product for the keys of memory and tokens, and gradients that products add up."""
        num_tokens, context_BKD = tokens_BTD.shape[1], tokens_BTD.detach()
        if memory_BMD.shape[1]:
            context_BKD = torch.cat([memory_BMD.detach(), context_BKD], dim=1)
        query_BQF, tokens_BTD = self.query(queries_BQD, queries_BQD.detach(), num_tokens)
        key_BKF, tokens_BTD = self.key(tokens_BTD, context_BKD, num_tokens)
        value_BKF, _ = self.value(tokens_BTD, context_BKD, num_tokens)
        return self._split(query_BQF), self._split(key_BKF), self._split(value_BKF)

    def _of_keys(self, linear: nn.Linear, memory_BMD: Tensor, tokens_BTD: Tensor) -> Tensor:
        """Project all keys to "B K N H"; memory and tokens separately, since the memory needs no gradient."""
        projected = linear(tokens_BTD)
        if memory_BMD.shape[1]:
            projected = torch.cat([linear(memory_BMD), projected], dim=1)
        return self._split(projected)

    def _split(self, projected: Tensor) -> Tensor:
        """Split a projection into heads."""
        return projected.view(*projected.shape[:-1], self.num_heads, self.d_head)


class RelativeAttention(Attention):
    """score = ((q + u) k + (q + v) W_r R[distance] + (q + s) e[segment]) / sqrt(H); no projection has a bias.

    The first two terms are equation (3) of Transformer-XL (arXiv:1901.02860), u being `content_bias` (the originals'
    r_w_bias) and v `position_bias` (r_r_bias). The third is XLNet's (arXiv:1906.08237, section 2.5): s is
    `segment_bias` (r_s_bias), and e one of two vectors of the layer, for keys of the query's segment and for others.
    Queries of a second stream (XLNet, section 2.3) come after the tokens and attend the same keys.
    """

    def __init__(self, *, d_model: int, num_heads: int, d_head: int, dropout: float, bidirectional: bool):
        """bidirectional: distances of either sign, and segments."""
        super().__init__(d_model=d_model, num_heads=num_heads, d_head=d_head, dropout=dropout, bias=False)
        output = self._modules.pop("output")
        self.distance = nn.Linear(d_model, num_heads * d_head, bias=False)
        self.add_module("output", output)  # last again: fresh weights are drawn in this order
        self.bidirectional = bidirectional
        self.segment_embedding = nn.Parameter(torch.zeros(2, num_heads, d_head)) if bidirectional else None

    def forward(  # type: ignore[override]
        self,
        queries_BQD: Float[Tensor, "B Q D"],
        memory_BMD: Float[Tensor, "B M D"],
        tokens_BTD: Float[Tensor, "B T D"],
        mask: AttentionMask,
        positions: RelativePositions,
        content_bias_NH: Float[Tensor, "N H"],
        position_bias_NH: Float[Tensor, "N H"],
        segment_bias_NH: Float[Tensor, "N H"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Attend over memory and tokens, and project back to D. The tokens are the first T queries, and the
        memory gets no gradient."""
        implementation = self._implementation(queries_BQD)
        biases = (content_bias_NH, position_bias_NH, *([] if segment_bias_NH is None else [segment_bias_NH]))
        distance_GRNH = self._split(self.distance(positions.distances))
        by_hand = implementation in ("sdpa", "fused") and may_be_by_hand(memory_BMD)
        project = self._chained if by_hand else self._projected
        query_BQNH, key_BKNH, value_BKNH = project(queries_BQD, memory_BMD, tokens_BTD)
        if implementation == "fused":
            return self._fused(query_BQNH, key_BKNH, value_BKNH, distance_GRNH, mask, biases)
        if by_hand:
            return self._by_hand(query_BQNH, key_BKNH, value_BKNH, distance_GRNH, mask, positions, biases)
        # Scaling the queries is scaling the sum of the scores, on a tensor K/H times smaller.
        scale = self.d_head**-0.5
        by_content_BQNH, by_position_BQNH, *by_segment = ((query_BQNH + bias_NH) * scale for bias_NH in biases)
        by_segment_SBQN = None
        if by_segment:
            assert self.segment_embedding is not None
            by_segment_SBQN = torch.einsum("bqnh,snh->sbqn", by_segment[0], self.segment_embedding)
        if implementation == "blocks":
            more_BQN = None if by_segment_SBQN is None else by_segment_SBQN[0] - by_segment_SBQN[1]
            plan = TilePlan(mask.added, positions, self.dropout.p, self.dropout.draw())
            return self._project(
                TiledAttention.apply(  # type: ignore[no-untyped-call]
                    by_content_BQNH, key_BKNH, value_BKNH, by_position_BQNH, distance_GRNH, more_BQN, plan
                )
            )
        bias_BNQK = self._position_scores(by_position_BQNH, distance_GRNH, positions, num_keys=key_BKNH.shape[1])
        if by_segment_SBQN is not None:
            bias_BNQK = bias_BNQK + _segment_scores(by_segment_SBQN, positions)
        if implementation == "plain":
            return self._attend(by_content_BQNH, key_BKNH, value_BKNH, mask, bias_BNQK)
        return self._sdpa(by_content_BQNH, key_BKNH, value_BKNH, mask, bias_BNQK + mask.added[:, None], 1.0)

    def _fused(
        self,
        query_BQNH: Tensor,
        key_BKNH: Tensor,
        value_BKNH: Tensor,
        distance_GRNH: Tensor,
        mask: AttentionMask,
        biases: tuple[Tensor, ...],
    ) -> Tensor:
        """Attention by kernels of our own, which add, mask and drop without a tensor of the size of the scores."""
        view = mask.view
        assert view is not None, "the mask was made for another implementation"
        dtype = value_BKNH.dtype  # under autocast, biases are wider
        biased_SBQNH = (query_BQNH + torch.stack(biases)[:, None, None]).to(dtype)
        by_content_BQNH, by_position_BQNH, *by_segment = biased_SBQNH.unbind()
        segment_NBQ2 = None
        if by_segment:
            assert self.segment_embedding is not None
            rows_NQH = by_segment[0].flatten(0, 1).transpose(0, 1)
            scores_NQ2 = torch.bmm(rows_NQH, self.segment_embedding.permute(1, 2, 0).to(dtype))
            segment_NBQ2 = scores_NQ2.view(len(scores_NQ2), *by_content_BQNH.shape[:2], 2)
        attended_BQNH = fused_relative_attention(
            by_content_BQNH,
            key_BKNH,
            value_BKNH,
            by_position_BQNH,
            distance_GRNH.to(dtype),
            segment_NBQ2,
            view,
            scale=self.d_head**-0.5,
            rate=self.dropout.p,
            seed=draw_seed(value_BKNH.device) if self.training and self.dropout.p > 0 else None,
        )
        return self._project(attended_BQNH)

    def _by_hand(
        self,
        query_BQNH: Tensor,
        key_BKNH: Tensor,
        value_BKNH: Tensor,
        distance_GRNH: Tensor,
        mask: AttentionMask,
        positions: RelativePositions,
        biases: tuple[Tensor, ...],
    ) -> Tensor:
        """Attention on an accelerator: all that is added to the scores by content in one tensor."""
        scale = self.d_head**-0.5
        by_content_BQNH, by_position_BQNH, *by_segment = (query_BQNH + torch.stack(biases)[:, None, None]).unbind()
        bias_BNQK: Tensor = PositionBias.apply(  # type: ignore[no-untyped-call]
            by_position_BQNH,
            distance_GRNH,
            by_segment[0] if by_segment else None,
            self.segment_embedding if by_segment else None,
            mask.added,
            positions,
            scale,
        )
        return self._sdpa(by_content_BQNH, key_BKNH, value_BKNH, mask, bias_BNQK, scale)

    def _position_scores(
        self, query_BQNH: Tensor, distance_GRNH: Tensor, positions: RelativePositions, *, num_keys: int
    ) -> Tensor:
        if positions.reversed is None:
            scores_BNQR = torch.einsum("bqnh,rnh->bnqr", query_BQNH, distance_GRNH[0])
        else:
            scores_BNQR = torch.einsum("bqnh,brnh->bnqr", query_BQNH, distance_GRNH[positions.reversed.long()])
        predict = positions.target_positions
        if predict is None:
            return relative_shift(scores_BNQR, num_keys)
        num_tokens = query_BQNH.shape[1] - predict.shape[1]
        shifted_BNTK: Tensor = relative_shift(scores_BNQR[:, :, :num_tokens], num_keys)
        scores_BNPR = scores_BNQR[:, :, num_tokens:]
        gathered_BNPK = gather_distances(scores_BNPR, predict, num_tokens=num_tokens, num_keys=num_keys)
        return torch.cat([shifted_BNTK, gathered_BNPK], dim=2)

    def _columns(self, seq_len: int, mem_len: int) -> int:
        """Columns of content attention plus those of the distance scores; the two for segments are not counted."""
        num_keys = seq_len + mem_len
        return super()._columns(seq_len, mem_len) + num_keys + (seq_len if self.bidirectional else 0)


def _segment_scores(scores_SBQN: Tensor, positions: RelativePositions) -> Tensor:
    same_BNQ1, other_BNQ1 = scores_SBQN.transpose(2, 3)[..., None].unbind()
    if positions.same_segment is None:
        return same_BNQ1
    return torch.where(positions.same_segment.bool()[:, None], same_BNQ1, other_BNQ1)


def _seen(attended_BQNH: Tensor, mask: AttentionMask) -> Tensor:
    """Zero the output of fully masked queries (the originals average the masked values)."""
    return attended_BQNH if mask.seen is None else attended_BQNH * mask.seen


def may_be_by_hand(memory_BMD: Tensor) -> bool:
    """True if backward passes of our own may be used: not in a compiler, which fuses better, and with one dtype.

    They give the memory no gradient; with pre-norm it has one, that of the norm's weights.
    """
    compiled_or_mixed = (
        torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    )
    return not (compiled_or_mixed or memory_BMD.requires_grad)
