"""Torch's fused attention on accelerators: its kernels, their known faults, and samples packed without padding.

scaled_dot_product_attention chooses among cuDNN's kernel, flash attention, the memory-efficient kernel and a plain
formula. Flash attention takes no mask. With `torch.use_deterministic_algorithms(True)` torch itself rules out cuDNN's
kernel, and the backward passes of the other two sum in a fixed order. Shapes as in `relative_positions.py`; V is the
number of tokens of all packed samples.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fused_attention(
    query_BQNH: Float[Tensor, "B Q N H"],
    key_BKNH: Float[Tensor, "B K N H"],
    value_BKNH: Float[Tensor, "B K N H"],
    added_BNQK: Tensor | None,
    *,
    dropout: float,
    scale: float,
) -> Float[Tensor, "B Q N H"]:
    """softmax(scale q k + added) v; added: a tensor that can be broadcast to "B N Q K", or None."""
    width = query_BQNH.shape[-1]
    query, key, value = (_whole_eights(part).transpose(1, 2) for part in (query_BQNH, key_BKNH, value_BKNH))
    with _kernels(query_BQNH, num_keys=key.shape[2], masked=added_BNQK is not None):
        attended_BNQH = F.scaled_dot_product_attention(
            query, key, value, attn_mask=added_BNQK, dropout_p=dropout, scale=scale
        )
    return attended_BNQH.transpose(1, 2)[..., :width]


def takes_packed(hidden: Tensor) -> bool:
    """True if `packed_attention` has a kernel for this device and dtype: flash attention, in fp16 and bf16."""
    if hidden.dtype not in (torch.float16, torch.bfloat16):
        return False
    if hidden.device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(hidden.device) >= (8, 0)
    return hidden.device.type == "meta"


def packed_attention(
    query_VNH: Float[Tensor, "V N H"],
    key_VNH: Float[Tensor, "V N H"],
    value_VNH: Float[Tensor, "V N H"],
    offsets: Int[Tensor, " _"],
    *,
    longest: int,
    dropout: float,
    scale: float,
) -> Float[Tensor, "V N H"]:
    """Attention of each token over its own sample; see `AttentionMask.offsets`.

    The kernel drops weights itself. Torch's public function for this (torch.nn.attention.varlen) has no dropout.
    """
    width = query_VNH.shape[-1]
    query, key, value = (_whole_eights(part) for part in (query_VNH, key_VNH, value_VNH))
    attended_VNH: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, offsets, offsets, longest, longest, dropout, False, False, scale=scale
    )[0]
    return attended_VNH[..., :width]


def _kernels(query: Tensor, *, num_keys: int, masked: bool) -> AbstractContextManager[None]:
    """Rule out cuDNN's kernel where its backward pass gives NaN for a query that may see nothing (pytorch#196678)."""
    if query.device.type == "cuda" and masked and num_keys % 128 == 64:
        return sdpa_kernel(_WITHOUT_CUDNN)
    return nullcontext()


def _whole_eights(part: Tensor) -> Tensor:
    """Pad the heads with zeros to a multiple of 8: without a fused kernel, scores would be kept, as fp32."""
    missing = -part.shape[-1] % 8
    return part if part.device.type == "cpu" or not missing else F.pad(part, (0, missing))
