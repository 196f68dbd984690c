"""The keys that each query sees, for fused attention of a model pretrained with xlpretrain.

Shapes as in `backbone_xlpretrain.py`. The kernels are in `fused_xlpretrain.py`, which needs Triton; this file does not.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = 2**31 - 1
"""Rank of a key that no query sees."""


def visibility(config: Any, memory: Tensor, valid: Tensor, segments: Tensor, predict: Tensor) -> Any:
    """The same as the backbone's mask, without a matrix: a query sees the keys whose rank is at most its own.

    memory [B, M], valid [B, T]: true where a key is. Raises RuntimeError where fused attention cannot run.
    """
    if reason := why_not_fused(valid.device):
        raise RuntimeError(f'attention="fused": {reason}; load the model with attention="plain"')
    from .fused_xlpretrain import Visibility

    (batch_size, num_tokens), mem_len = valid.shape, memory.shape[1]
    at = torch.arange(num_tokens, device=valid.device).expand(batch_size, -1)
    causal = config.type == "transformer_xl" or getattr(config, "causal", False)
    rank = at if causal else torch.zeros_like(at)
    if getattr(config, "initial_memory", "none") == "zeros":
        memory = torch.ones_like(memory)
    positions = torch.cat([at, predict], dim=1)
    queries = [rank.gather(1, positions), num_tokens - positions, segments.gather(1, positions)]
    keys = torch.cat([torch.where(memory, -NEVER, NEVER), rank.masked_fill(~valid, NEVER)], dim=1)
    return Visibility(
        torch.stack(queries).int(),
        torch.stack([keys, F.pad(segments, (mem_len, 0))]).int(),
        None,
        num_tokens=num_tokens,
        window=bool(getattr(config, "same_length", False)) and mem_len > 0,
        not_own=predict.shape[1] > 0,
    )


def why_not_fused(device: torch.device) -> str | None:
    """The reason why fused attention cannot run on a device; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    nvidia = device.type == "cuda" and torch.version.hip is None
    if nvidia and torch.cuda.get_device_capability(device) >= (8, 0):
        return None
    return f"it needs an NVIDIA GPU of compute capability 8.0 or newer, and the model is on {device}"
