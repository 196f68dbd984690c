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


class MemoryTiles(NamedTuple):
    """The tiles of the programs that read scores by position from memory."""

    forward: Tile
    backward_queries: Tile
    backward_keys: Tile


class BandTiles(NamedTuple):
    """The tiles of the programs that make scores by position: powers of 2, with no more queries than keys."""

    forward: Tile
    backward_queries: Tile
    backward_keys: Tile
    """Also for the keys' gradients from queries whose scores are in memory."""
    backward_distances: Tile
    """Queries and distances."""


class Tiles(NamedTuple):
    """The tiles of an attention."""

    memory: MemoryTiles
    band: BandTiles | None
    """None: scores by position are always in memory."""


LARGEST = 128
"""No tile has more queries or keys."""
_SMALL = Tile(16, 16, 4, 1)
INTERPRETED = Tiles(MemoryTiles(_SMALL, _SMALL, _SMALL), BandTiles(_SMALL, _SMALL, _SMALL, _SMALL))
"""For Triton's interpreter: small, so that tests have more than one."""

TILES: Mapping[tuple[int, str, int], Tiles] = {
    (80, "bf16", 32): Tiles(
        MemoryTiles(Tile(64, 64, 8, 2), Tile(64, 32, 8, 2), Tile(32, 32, 4, 2)),
        BandTiles(Tile(64, 64, 8, 2), Tile(16, 64, 4, 2), Tile(32, 64, 8, 2), Tile(16, 64, 4, 2)),
    ),
    (80, "bf16", 64): Tiles(
        MemoryTiles(Tile(64, 64, 4, 2), Tile(64, 32, 8, 2), Tile(64, 32, 4, 2)),
        BandTiles(Tile(64, 64, 8, 2), Tile(32, 64, 8, 2), Tile(32, 32, 4, 2), Tile(16, 32, 4, 2)),
    ),
    (80, "bf16", 128): Tiles(
        MemoryTiles(Tile(64, 32, 8, 2), Tile(32, 32, 4, 2), Tile(64, 32, 8, 2)),
        BandTiles(Tile(32, 64, 8, 2), Tile(16, 64, 8, 2), Tile(32, 64, 8, 2), Tile(16, 32, 4, 2)),
    ),
    (80, "fp32", 32): Tiles(
        MemoryTiles(Tile(32, 32, 4, 2), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
        BandTiles(Tile(16, 32, 4, 1), Tile(16, 32, 8, 1), Tile(16, 32, 4, 1), Tile(16, 16, 4, 1)),
    ),
    (80, "fp32", 64): Tiles(
        MemoryTiles(Tile(32, 32, 4, 2), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
        None,
    ),
    (80, "fp32", 128): Tiles(
        MemoryTiles(Tile(16, 32, 4, 1), Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
        None,
    ),
    (90, "bf16", 32): Tiles(
        MemoryTiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
        BandTiles(Tile(64, 64, 8, 2), Tile(16, 64, 4, 2), Tile(32, 64, 4, 2), Tile(32, 64, 8, 2)),
    ),
    (90, "bf16", 64): Tiles(
        MemoryTiles(Tile(64, 64, 4, 2), Tile(64, 32, 8, 2), Tile(64, 32, 4, 2)),
        BandTiles(Tile(64, 64, 8, 2), Tile(32, 64, 8, 2), Tile(32, 64, 4, 2), Tile(32, 64, 8, 2)),
    ),
    (90, "bf16", 128): Tiles(
        MemoryTiles(Tile(64, 64, 8, 2), Tile(64, 32, 8, 2), Tile(64, 32, 8, 2)),
        BandTiles(Tile(32, 64, 8, 2), Tile(16, 64, 8, 2), Tile(16, 32, 8, 1), Tile(16, 64, 8, 2)),
    ),
    (90, "fp32", 32): Tiles(
        MemoryTiles(Tile(32, 32, 8, 2), Tile(16, 16, 8, 1), Tile(16, 16, 4, 1)),
        BandTiles(Tile(16, 32, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 8, 1)),
    ),
    (90, "fp32", 64): Tiles(
        MemoryTiles(Tile(32, 32, 4, 2), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
        None,
    ),
    (90, "fp32", 128): Tiles(
        MemoryTiles(Tile(16, 32, 4, 1), Tile(16, 16, 8, 2), Tile(16, 16, 8, 1)),
        None,
    ),
}
"""By compute capability, data type, and width of a head (the next power of 2). In fp32, with heads wider than 32, the
programs that make scores by position spill."""

_in_use: dict[tuple[str, torch.dtype, int], Tiles] = {}


def tiles(device: torch.device, dtype: torch.dtype, width: int) -> Tiles:
    """The tiles in use on a kind of device: those of `use_tiles`, else the first in the table."""
    if found := _in_use.get((device.type, dtype, padded(width))):
        return found
    return admissible(device, dtype, width)[0]


def use_tiles(device: torch.device, dtype: torch.dtype, width: int, chosen: Tiles | None) -> None:
    """Use these tiles in this process from now on, on all devices of that type. None: those of the table."""
    key = device.type, dtype, padded(width)
    _in_use.pop(key, None)
    if chosen is not None:
        _in_use[key] = chosen


def admissible(device: torch.device, dtype: torch.dtype, width: int) -> tuple[Tiles, ...]:
    """The tiles that a device can take, the one to be expected fastest first."""
    if device.type != "cuda":
        return (INTERPRETED, Tiles(INTERPRETED.memory, None))
    major, minor = torch.cuda.get_device_capability(device)
    return tiles_of(major * 10 + minor, dtype, width)


def tiles_of(capability: int, dtype: torch.dtype, width: int) -> tuple[Tiles, ...]:
    """The tiles of the newest card in the table that is not newer than this one; then the same with scores in memory.

    From compute capability 8.6 on, cards that are no data-center cards have 100 KB of shared memory a block; no tile
    of the older card takes more.
    """
    card = 90 if capability >= 90 else 80
    found = TILES[card, "fp32" if dtype == torch.float32 else "bf16", max(32, padded(width))]
    return (found,) if found.band is None else (found, Tiles(found.memory, None))


def describe(chosen: Tiles) -> str:
    """The tiles in one line."""
    source, programs = ("made by the programs", chosen.band) if chosen.band else ("in memory", chosen.memory)
    each = (f"{name} {'x'.join(map(str, tile[:2]))}" for name, tile in programs._asdict().items())
    return f"scores by position {source}, {', '.join(each)}"


def padded(width: int) -> int:
    """The width of a head in a tile: a power of 2, at least 16."""
    return max(16, 1 << (width - 1).bit_length())
