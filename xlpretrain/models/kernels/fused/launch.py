"""One call of fused relative attention: its sizes and settings, and the launches of its programs."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from xlpretrain.extras import optional
from xlpretrain.models.kernels.fused.tiles import Tile, padded, tiles

_DROPPED = 2**31
"""Number of levels of a dropout rate."""
_LAUNCHED, _DISTANCES = 1024, 64
"""Number of programs of about so many distances at which their gradient is not split any further."""
SUM_ROWS, SUM_COLUMNS, SUM_WARPS = 32, 64, 4
"""The tile of `column_sums`."""


class Call:
    """The arguments of one attention, contiguous, and what its programs are launched with."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        by_position: Tensor,
        distance: Tensor,
        segment: Tensor | None,
        queries: Tensor,
        keys: Tensor,
        directions: Tensor | None,
        seed: Tensor | None,
        scale: float,
        rate: float,
        num_tokens: int,
        window: bool,
        not_own: bool,
    ):
        self.query, self.key, self.value = query, key, value
        self.by_position, self.distance, self.segment, self.directions = by_position, distance, segment, directions
        self.samples, self.num_queries, self.heads, self.width = query.shape
        self.num_keys, self.num_distances = key.shape[1], distance.shape[1]
        self.tiles = tiles(query.device, query.dtype, self.width)
        self.in_band = min(num_tokens, self.num_queries) if self.tiles.band else 0
        """The queries before this one have their scores by position made by the programs."""
        self.in_memory = self.num_queries - self.in_band
        """The number of the others."""
        dropped = round(rate * _DROPPED)
        self._places = (
            segment if segment is not None else query,
            queries,
            keys,
            directions if directions is not None else queries,
            seed if seed is not None else queries,
        )
        sizes = self.samples, self.heads, self.num_queries, self.num_keys, self.num_distances, num_tokens, self.in_band
        keep_scale = 1.0 if seed is None else _DROPPED / (_DROPPED - dropped)
        self._numbers = (*sizes, dropped, keep_scale, scale)
        self._constants = {
            "SEGMENTS": segment is not None,
            "WINDOW": window,
            "NOT_OWN": not_own,
            "DROPOUT": seed is not None and dropped > 0,
            "DIRECTIONS": directions is not None,
        }

    def launch_for_queries(
        self, program: str, position: Tensor | None, band_results: tuple[Any, ...], memory_results: tuple[Any, ...]
    ) -> None:
        """Run `forward` or `backward_queries` for the queries whose scores are in a band, then for the others.

        position: the scores by position in memory.
        """
        if self.tiles.band and self.in_band:
            tile = getattr(self.tiles.band, program)
            self._launch(program, tile, -(-self.in_band // tile.queries), None, band_results, BAND=True)
        if self.in_memory:
            tile = getattr(self.tiles.memory, program)
            self._launch(program, tile, -(-self.in_memory // tile.queries), position, memory_results, BAND=False)

    def launch_for_keys(self, position: Tensor | None, results: tuple[Tensor, ...]) -> None:
        """Run `backward_keys`."""
        tile = (self.tiles.band or self.tiles.memory).backward_keys
        programs, band, memory = -(-self.num_keys // tile.keys), self.in_band > 0, self.in_memory > 0
        self._launch("backward_keys", tile, programs, position, results, BAND=band, MEMORY=memory)

    def gradient_of_distances(self, common: tuple[Tensor, ...]) -> Tensor | None:
        """Run `backward_distances`: "G R N H", of the queries whose scores are in a band; None: there are none."""
        if not self.tiles.band or not self.in_band:
            return None
        tile, sets = self.tiles.band.backward_distances, len(self.distance)
        per_group, groups = self.groups_of_samples()
        partial = self.distance.new_empty(groups, *self.distance.shape, dtype=torch.float32)
        programs = -(-self.num_distances // tile.keys) * sets * groups
        self._launch("backward_distances", tile, programs, None, (*common, partial), numbers=(per_group, sets))
        return sum_partials(partial, self.distance.dtype)

    def groups_of_samples(self) -> tuple[int, int]:
        """Number of samples in a group whose gradient of distances is added up by one program, and of groups.

        A function of shapes alone: the order of addition is equal on every card.
        """
        programs = -(-self.num_distances // _DISTANCES) * len(self.distance) * self.heads
        per_group = -(-self.samples // min(self.samples, -(-_LAUNCHED // programs)))
        return per_group, -(-self.samples // per_group)

    def _launch(
        self,
        program: str,
        tile: Tile,
        programs: int,
        position: Tensor | None,
        results: tuple[Any, ...],
        *,
        numbers: tuple[int, ...] = (),
        **kinds: bool,
    ) -> None:
        with optional("triton", "engine.attention: fused"):
            from xlpretrain.models.kernels.fused import programs as all_programs

        inputs = self.query, self.key, self.value, self.by_position, self.distance
        getattr(all_programs, program)[programs * self.heads * (1 if numbers else self.samples),](
            *inputs,
            self.query if position is None else position,
            *self._places,
            *results,
            *self._numbers,
            *numbers,
            **self._constants,
            **kinds,
            **constants(tile, self.width),
        )


def sum_partials(partials: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first dimension of partial sums in fp32, in a fixed order, rounded once to a data type."""
    with optional("triton", "engine.attention: fused"):
        from xlpretrain.models.kernels.fused import programs as all_programs

    output = partials.new_empty(partials.shape[1:], dtype=dtype)
    grid = (-(-output.numel() // SUM_COLUMNS),)
    numbers = len(partials), output.numel()
    all_programs.column_sums[grid](partials, output, *numbers, BR=SUM_ROWS, BC=SUM_COLUMNS, num_warps=SUM_WARPS)
    return output


def constants(tile: Tile, width: int) -> dict[str, Any]:
    """The compile-time arguments of a program that depend on the width of a head and the tile."""
    # As torch's own products: fp32 (three products of TF32 each), or TF32 where that is allowed. Of no effect on bf16.
    precision = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    if os.environ.get("TRITON_INTERPRET") == "1":
        precision = "widened"
    return {
        "H": width,
        "HP": padded(width),
        "BQ": tile.queries,
        "BK": tile.keys,
        "PRECISION": precision,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
