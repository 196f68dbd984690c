"""Sizes of the tiles by card, data type and width of a head."""

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


INTERPRETED = Tile(16, 16, 4, 1)


def tiles(device: torch.device, dtype: torch.dtype, width: int) -> Mapping[str, Tile]:
    """The settings of each program."""
    return {name: INTERPRETED for name in ("forward", "backward_queries", "backward_keys")}


LARGEST = 128
"""No tile has more queries or keys."""
