"""Random arguments of fused relative attention, for the check of a device and for timing.

Shapes as in `operators.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.kernels.fused.visibility import Visibility, visibility


class Kind(NamedTuple):
    """The properties of an attention that its programs are compiled for."""

    dtype: torch.dtype
    width: int
    """Width of a head."""
    rate: float
    """Dropout of the weights."""
    causal: bool
    """A causal decoder; otherwise two streams with segments and samples read in either direction."""


class Sizes(NamedTuple):
    """The lengths of an example."""

    samples: int
    tokens: int
    memory: int
    heads: int
    predictions: int


SMALL = Sizes(2, 70, 45, 2, 9)
"""Several tiles, none of them whole."""


def example(device: torch.device, kind: Kind, sizes: Sizes) -> tuple[list[Tensor], Tensor, Visibility]:
    """Random arguments, rounded to the data type: queries, keys, values, queries by position, distances; then segment
    scores, and who sees whom. The first sample has no memory, and a query may see nothing."""
    samples, tokens, memory, heads, predictions = sizes
    generator = torch.Generator().manual_seed(0)
    remembered = torch.arange(samples) * memory // max(1, samples - 1)
    inputs = BackboneInput(torch.zeros(samples, tokens, dtype=torch.int64), remembered)
    if not kind.causal:
        order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(samples)])
        inputs = BackboneInput(
            inputs.tokens,
            inputs.mem_valid_len,
            segments=torch.randint(2, (samples, tokens), generator=generator),
            perm_rank=order,
            target_positions=order[:, :predictions],
            reversed=torch.arange(samples) % 2 == 1,
        )
    view = visibility(inputs.map(lambda tensor: tensor.to(device)), mem_len=memory, causal=kind.causal)
    (_, _, num_queries), num_keys = view.queries.shape, view.keys.shape[2]
    of_queries, of_keys = (samples, num_queries, heads, kind.width), (samples, num_keys, heads, kind.width)
    sets, num_distances = (1, num_keys + 8) if kind.causal else (2, num_keys + tokens)
    shapes: list[tuple[int, ...]] = [of_queries, of_keys, of_keys, of_queries, (sets, num_distances, heads, kind.width)]
    shapes.append((heads, samples, num_queries, 2))
    *arguments, segment = (torch.randn(shape, generator=generator).to(device, kind.dtype).float() for shape in shapes)
    return arguments, segment, view
