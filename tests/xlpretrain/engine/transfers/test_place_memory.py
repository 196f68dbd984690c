"""Memories of ranges of streams, divided by micro-batches and back."""

from __future__ import annotations

import torch

from xlpretrain.engine.transfers.place_memory import cut_memory, memory_by_range

RANGES = [range(4), range(6, 6), range(9, 12)]
MICRO_BATCHES = [range(0, 1), range(1, 4), range(6, 6), range(9, 9), range(9, 12)]


def test_micro_batches_cut_the_memories_of_their_ranges_and_join_them_again() -> None:
    memory = [torch.rand(2, 4, 3, 5), torch.rand(2, 0, 7, 5), torch.rand(2, 3, 6, 5)]
    parts = cut_memory(memory, RANGES, MICRO_BATCHES)
    assert [tuple(part.shape[1:3]) for part in parts] == [(1, 3), (3, 3), (0, 7), (0, 6), (3, 6)]
    joined = memory_by_range(parts, RANGES, MICRO_BATCHES)
    assert list(joined) == [range(4), range(9, 12)], "ranges without streams have nothing to save"
    assert torch.equal(torch.cat(joined[range(4)], dim=1), memory[0])
    assert torch.equal(torch.cat(joined[range(9, 12)], dim=1), memory[2])
