"""Work inside of the two operators of fused relative attention: kernels, bytes and FLOPs on an H100.

Products and copies of torch's are counted on the meta device; programs of our own by hand, from their shapes and tiles,
each reading its tensors once, and of scores in memory the tiles that are not skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cases import Case
from xlpretrain.models.attention import RelativeAttention
from xlpretrain.models.kernels.fused.launch import Call
from xlpretrain.models.kernels.fused.scores import ScoresInMemory
from xlpretrain.models.kernels.fused.tiles import Tile, Tiles, tiles_of, use_tiles
from xlpretrain.planning.device_work import counted

META = torch.device("meta")


@dataclass(frozen=True)
class FusedWork:
    """The shapes of one attention."""

    samples: int
    heads: int
    tokens: int
    queries: int
    keys: int
    distances: int
    sets: int
    width: int
    dtype: torch.dtype
    causal: bool
    tiles: Tiles

    @classmethod
    def of(cls, attention: RelativeAttention, of: Case, arguments: list[Any], *, in_memory: bool) -> FusedWork:
        """The work of a layer's attention; in_memory: no program makes scores by position."""
        positions, hidden, width = arguments[4], arguments[0], attention.d_head
        return cls(
            *(of.rows, attention.num_heads, of.seq_len, hidden.shape[1], of.mem_len + of.seq_len),
            *reversed(positions.distances.shape[:2]),
            width,
            hidden.dtype,
            not attention.bidirectional,
            tiles_of(90, hidden.dtype, width)[-1 if in_memory else 0],
        )

    @property
    def in_band(self) -> int:
        """The number of queries whose scores by position are made by the programs."""
        return self.tokens if self.tiles.band else 0

    @property
    def in_memory(self) -> int:
        """The number of the others."""
        return self.queries - self.in_band

    def operations(self) -> tuple[int, int]:
        """Kernels of the forward and of the backward operator."""
        launches = (self.in_band > 0) + (self.in_memory > 0)
        before, after = self._products()
        distances = 2 if self.in_band else 0  # the gradient in parts, and their sum
        return launches + before.total, launches + 1 + distances + before.total + after.total

    def moved(self) -> tuple[int, int]:
        """Bytes read and written by the two operators."""
        before, after = (operations.moved.total() for operations in self._products())
        forward, backward = before, before + after
        key, distance = (
            self._rows(self.keys),
            self.sets * self.heads * self.distances * self.width * self.dtype.itemsize,
        )
        if band := self.tiles.band:
            query, numbers, segment = self._rows(self.in_band), *self._numbers(self.in_band)
            forward += 3 * query + 2 * key + distance + segment + numbers
            backward += 6 * query + 2 * key + distance + 2 * segment + 2 * numbers
            # The gradient of distances: by a program, to groups of samples in fp32, which are added, then rounded.
            groups = _call(self).groups_of_samples()[1] * distance * 4 // self.dtype.itemsize
            backward += 3 * query + 2 * key + distance + segment + 2 * numbers + 2 * groups + 5 * distance
        if self.in_memory:
            query, numbers, segment = self._rows(self.in_memory), *self._numbers(self.in_memory)
            scores = self.samples * self.heads * self.in_memory * self.distances * self.dtype.itemsize
            forward += 2 * query + 2 * key + self._read(self.tiles.memory.forward) + segment + numbers
            read = self._read(self.tiles.memory.backward_queries) + self._read(
                (band or self.tiles.memory).backward_keys
            )
            backward += 4 * query + 2 * key + read + scores + 2 * segment + 2 * numbers
        numbers, segment = self._numbers(self.queries)
        backward += 2 * self._rows(self.queries) + 4 * key + segment + 2 * numbers
        if band:
            backward += self._rows(self.in_band) + distance
        return forward, backward

    def flops(self) -> float:
        """FLOPs of the fused operators: tiles that are not skipped, and products over all distances."""
        pairs = 4 * self.in_memory * self.distances * self.sets
        if self.in_memory:
            memory, keys = self.tiles.memory, (self.tiles.band or self.tiles.memory).backward_keys
            pairs += 2 * self._seen(memory.forward) + 3 * self._seen(memory.backward_queries) + 4 * self._seen(keys)
        if band := self.tiles.band:
            seen = [self._seen_in_band(tile) for tile in band[:3]]
            pairs += 3 * seen[0] + 5 * seen[1] + 6 * seen[2] + 6 * self._seen_by_distance(band.backward_distances)
        return 2.0 * self.samples * self.heads * self.width * pairs

    def flops_of_sdpa(self) -> float:
        """FLOPs of products over all keys and distances: 2 + 5 by content, 1 + 2 by distance."""
        pairs = 7 * self.queries * self.keys + 3 * self.queries * self.distances
        return 2.0 * self.samples * self.heads * self.width * pairs

    def _products(self) -> tuple[Any, Any]:
        """The work of torch before the programs read scores from memory, and after they have written their gradient."""
        call = _call(self)
        other = torch.empty_like(call.distance) if self.in_band else None
        with counted() as before:
            scores = ScoresInMemory(call) if self.in_memory else None
        d_scores = torch.empty_like(scores.scores if scores else call.query)
        d_by_position = torch.empty_like(call.by_position)
        with counted() as after:
            if scores:
                scores.add_gradients(d_scores, d_by_position, other)
        return before, after

    def _rows(self, count: int) -> int:
        return self.samples * self.heads * count * self.width * self.dtype.itemsize

    def _numbers(self, queries: int) -> tuple[int, int]:
        """Bytes of one fp32 for each query, and of its scores by segment."""
        rows = self.samples * self.heads * queries
        return rows * 4, 0 if self.causal else 2 * rows * self.dtype.itemsize

    def _read(self, tile: Tile) -> int:
        return self.samples * self.heads * self._seen(tile) * self.dtype.itemsize

    def _seen(self, tile: Tile) -> int:
        """Pairs of query and key in the tiles that are not skipped, of one head of one sample: scores in memory."""
        return self._pairs(self.in_memory, tile)

    def _seen_in_band(self, tile: Tile) -> int:
        return self._pairs(self.in_band, tile)

    def _pairs(self, queries: int, tile: Tile) -> int:
        if not self.causal:
            return -(-queries // tile.queries) * tile.queries * -(-self.keys // tile.keys) * tile.keys
        memory, pairs = self.keys - queries, 0
        for first in range(0, queries, tile.queries):
            last = memory + min(first + tile.queries, queries)
            pairs += tile.queries * -(-last // tile.keys) * tile.keys
        return pairs

    def _seen_by_distance(self, tile: Tile) -> int:
        """Pairs of query and distance in the tiles of one head of one sample, which is in one direction."""
        pairs = 0
        for column in range(0, self.distances, tile.keys):
            first = max(0, self.tokens - column - tile.keys + 1) // tile.queries * tile.queries
            last = min(self.in_band, self.keys + self.tokens - column)
            pairs += max(0, -(-(last - first) // tile.queries)) * tile.queries * tile.keys
        return pairs


def _call(work: FusedWork) -> Call:
    """A call of the operator on the meta device."""
    use_tiles(META, work.dtype, work.width, work.tiles)
    options: dict[str, Any] = {"device": META, "dtype": work.dtype}
    query = torch.empty(work.samples, work.queries, work.heads, work.width, **options)
    key = torch.empty(work.samples, work.keys, work.heads, work.width, **options)
    distance = torch.empty(work.sets, work.distances, work.heads, work.width, **options)
    segment = None if work.causal else torch.empty(work.heads, work.samples, work.queries, 2, **options)
    whole: dict[str, Any] = {"device": META, "dtype": torch.int32}
    places = torch.empty(3, work.samples, work.queries, **whole), torch.empty(2, work.samples, work.keys, **whole)
    directions = None if work.sets == 1 else torch.empty(work.samples, **whole)
    settings = 1.0, 0.0, work.tokens, False, not work.causal
    return Call(query, key, key, query, distance, segment, *places, directions, None, *settings)
