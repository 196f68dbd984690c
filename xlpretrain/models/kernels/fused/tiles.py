"""Sizes of the tiles by card, data type and width of a head: data, with the reasons in docs/fused-attention.md.

They were chosen from what the compiler says of registers and shared memory (`python -m benchmarks.gpu.kernel_table`),
not by measuring: no GPU was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """The settings of one program."""

    queries: int
    keys: int
    warps: int
    stages: int
    """Tiles in flight: the depth of the software pipeline that loads the next ones."""


PROGRAMS = ("forward", "backward_queries", "backward_keys")
LARGEST = 128
"""No tile has more queries or keys."""
INTERPRETED = Tile(16, 16, 4, 1)
"""For Triton's interpreter: small, so that tests have more than one."""

TILES: Mapping[tuple[int, str, int], tuple[Tile, Tile, Tile]] = {
    (80, "bf16", 32): (Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2)),
    (80, "bf16", 64): (Tile(64, 64, 4, 2), Tile(64, 32, 8, 2), Tile(64, 32, 4, 2)),
    (80, "bf16", 128): (Tile(64, 32, 8, 2), Tile(32, 32, 4, 2), Tile(64, 32, 8, 2)),
    (80, "fp32", 32): (Tile(32, 32, 4, 2), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
    (80, "fp32", 64): (Tile(32, 32, 4, 2), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
    (80, "fp32", 128): (Tile(16, 32, 4, 1), Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
    (90, "bf16", 32): (Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2)),
    (90, "bf16", 64): (Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(64, 32, 4, 2)),
    (90, "bf16", 128): (Tile(64, 64, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
    (90, "fp32", 32): (Tile(32, 32, 8, 2), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
    (90, "fp32", 64): (Tile(32, 32, 4, 2), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
    (90, "fp32", 128): (Tile(16, 32, 4, 1), Tile(16, 16, 8, 2), Tile(16, 16, 4, 1)),
}
"""By compute capability, data type, and width of a head (the next power of 2): the tiles of `PROGRAMS`."""


def tiles(device: torch.device, dtype: torch.dtype, width: int) -> Mapping[str, Tile]:
    """The tile of each program."""
    if device.type != "cuda":
        return dict.fromkeys(PROGRAMS, INTERPRETED)
    major, minor = torch.cuda.get_device_capability(device)
    return dict(zip(PROGRAMS, tiles_of(major * 10 + minor, dtype, width), strict=True))


def tiles_of(capability: int, dtype: torch.dtype, width: int) -> tuple[Tile, Tile, Tile]:
    """The tiles of `PROGRAMS`: those of the newest card in the table that is not newer than this one.

    From compute capability 8.6 on, cards that are no data-center cards have 100 KB of shared memory a block; no tile
    in the table takes more.
    """
    card = 90 if capability >= 90 else 80
    return TILES[card, "fp32" if dtype == torch.float32 else "bf16", max(32, padded(width))]


def padded(width: int) -> int:
    """The width of a head in a tile: a power of 2, at least 16."""
    return max(16, 1 << (width - 1).bit_length())
