"""The keys that each query may attend: causal, same length, memory, factorization order, XLNet's second stream.

Shapes as in `relative_positions.py`: Q = T tokens and then P predictions, K = M + T keys.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xlpretrain.models.backbone import BackboneInput


def attention_mask(
    inputs: BackboneInput, *, mem_len: int, causal: bool, same_length: bool = False, initial_zeros: bool = False
) -> Bool[Tensor, "B Q K"]:
    """Mask of the keys that each query may attend, as `BackboneInput` defines it.

    Args:
        causal: no key after the query; else all keys, unless the input has an order.
        same_length: with a memory, only the newest `mem_len` keys up to the query itself: as many for the first query
            of a sample as for the last.
        initial_zeros: the whole memory, whatever of it is the sample's own.
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
    """A mask to add to scores: 0 where a key may be seen, half the lowest finite number where not.

    Finite, so that the softmax of a query that may see nothing is no NaN; attention then takes nothing. Half of it,
    since fused kernels multiply scores by log2(e), which must not make it infinite.
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
        # Without an order, a prediction sees all but the token it stands at.
        unseen = (
            positions != predict[..., None] if order is None else order[:, None] < order.gather(1, predict)[..., None]
        )
        visible = torch.cat([visible, unseen], dim=1)
    return visible if inputs.attention_mask is None else visible & inputs.attention_mask[:, None]
