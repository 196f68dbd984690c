"""Attention masks: causal, same length, memory, factorization order, XLNet's second stream.

Shapes as in `relative_positions.py`: Q = T tokens and then P predictions, K = M + T keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.fused.visibility import Visibility


@dataclass(frozen=True)
class AttentionMask:
    """The keys that each query may attend, shared by all layers. The host knows what it need not ask a device."""

    added: Float[Tensor, "B Q K"]
    """Added to the scores: see `additive_mask`."""
    seen: Float[Tensor, "B Q 1 1"] | None = None
    """1 for queries that may attend any key, 0 for others, whose attention is zero. None: all queries may."""
    hides: bool = True
    """False if every query may attend every key."""
    offsets: Int[Tensor, " _"] | None = None
    """The first token of each of S samples that are packed into one row, then the number of tokens: S + 1 int32. A
    token attends the tokens of its own sample, and nothing is added. None: one sample a row."""
    longest: int = 0
    """Upper bound of the length of a packed sample."""
    view: Visibility | None = None
    """The same for a fused kernel, which masks by itself: nothing is added. None: there is no such kernel."""


def mask_of(visible: Bool[Tensor, "B Q K"], dtype: torch.dtype, *, may_be_blind: bool) -> AttentionMask:
    """The mask of all layers. may_be_blind: False if the host knows that every query may attend some key."""
    seen = visible.any(-1)[..., None, None].to(dtype) if may_be_blind else None
    return AttentionMask(additive_mask(visible, dtype), seen)


def no_mask(
    tokens: Float[Tensor, "B T *D"], *, offsets: Int[Tensor, " _"] | None = None, longest: int = 0
) -> AttentionMask:
    """The mask with which every token may attend every token, or those of its packed sample: zeros without memory."""
    zeros = tokens.new_zeros(()).expand(*tokens.shape[:2], tokens.shape[1])
    return AttentionMask(zeros, None, False, offsets, longest)


def view_of(view: Visibility, like: Tensor) -> AttentionMask:
    """The mask of all layers for fused relative attention."""
    (_, batch_size, num_queries), num_keys = view.queries.shape, view.keys.shape[2]
    return AttentionMask(like.new_zeros(()).expand(batch_size, num_queries, num_keys), view=view)


def attention_mask(
    inputs: BackboneInput, *, mem_len: int, causal: bool, same_length: bool = False, initial_zeros: bool = False
) -> Bool[Tensor, "B Q K"]:
    """Mask of the keys that each query may attend (True), as defined by `BackboneInput`.

    Args:
        causal: no key after the query; otherwise all keys, unless the input has a `perm_rank`.
        same_length: with a memory, only the newest `mem_len` keys up to the query itself, so that the first query of a
            sample attends as many as the last.
        initial_zeros: the whole memory, regardless of `mem_valid_len`.
    """
    tokens = _visible_tokens(inputs, causal=causal)
    ages = torch.arange(mem_len, 0, -1, device=tokens.device)
    memory = (ages <= inputs.mem_valid_len[:, None]) | initial_zeros
    visible = torch.cat([memory[:, None].expand(-1, tokens.shape[1], -1), tokens], dim=-1)
    if same_length and mem_len > 0:
        assert causal, "in a bidirectional model all queries see equally many keys"
        keys = torch.arange(visible.shape[2], device=tokens.device)
        visible = visible & (keys > keys[mem_len:, None] - mem_len)
    return visible


def additive_mask(visible: Bool[Tensor, "B Q K"], dtype: torch.dtype) -> Float[Tensor, "B Q K"]:
    """Additive mask for attention scores: 0 where a key is visible, half the lowest finite number elsewhere.

    It is finite so that the softmax of a fully masked query is not NaN (attention then outputs zero), and half the
    lowest number because fused kernels multiply scores by log2(e), which must not overflow.
    """
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min / 2)


def _visible_tokens(inputs: BackboneInput, *, causal: bool) -> Bool[Tensor, "B Q T"]:
    batch_size, num_tokens = inputs.tokens.shape
    positions = torch.arange(num_tokens, device=inputs.tokens.device)
    order, predict = inputs.perm_rank, inputs.target_positions
    if causal:
        assert order is None and predict is None, "a causal model has one order"
        visible = positions <= positions[:, None]
    elif order is not None:
        visible = order[:, None] <= order[..., None]
    else:
        visible = torch.ones_like(positions, dtype=torch.bool)
    visible = visible.expand(batch_size, num_tokens, num_tokens)
    if predict is not None:
        # Without a perm_rank, a prediction sees all tokens except the one at its own position.
        unseen = (
            positions != predict[..., None] if order is None else order[:, None] < order.gather(1, predict)[..., None]
        )
        visible = torch.cat([visible, unseen], dim=1)
    return visible if inputs.attention_mask is None else visible & inputs.attention_mask[:, None]
