"""Moves of what belongs to streams between ranks, when their division among the ranks changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from xlpretrain import distributed

Division = Sequence[Sequence[range]]
"""The streams of each rank, as ranges."""


@dataclass(frozen=True)
class Move:
    """Consecutive streams that go from range `at` of rank `source` to range `to` of rank `target`."""

    source: int
    target: int
    at: int
    to: int
    streams: range


def divide(num_active: int, num_streams: int, world_size: int) -> list[list[range]]:
    """The streams of each rank: its share of the active ones, and of those after them, if there are any."""
    resting = num_streams - num_active
    found = []
    for rank in range(world_size):
        ranges = [distributed.streams_of(rank, world_size, num_active)]
        if resting:
            share = distributed.streams_of(rank, world_size, resting)
            ranges.append(range(num_active + share.start, num_active + share.stop))
        found.append(ranges)
    return found


def plan_moves(before: Division, after: Division) -> list[Move]:
    """The moves that turn one division of streams into another, in the order of ranks, ranges and streams.

    Streams that stay on their rank are moves from a rank to itself.
    """
    return [
        Move(source, target, at, to, both)
        for target, theirs in enumerate(after)
        for to, wanted in enumerate(theirs)
        for source, ours in enumerate(before)
        for at, had in enumerate(ours)
        if (both := range(max(wanted.start, had.start), min(wanted.stop, had.stop)))
    ]


def rearrange(parts: Sequence[Tensor], before: Division, after: Division, *, dim: int) -> list[Tensor]:
    """Move streams between ranks. Every rank must call it, also one without streams.

    Args:
        parts: a tensor on the CPU for each range of this rank in `before`, with the streams as dimension `dim`.
        dim: the same for all ranks, as the other dimensions and the data type.

    Returns:
        A tensor for each range of this rank in `after`.
    """
    rank, moves = distributed.rank(), plan_moves(before, after)
    shape, dtype = list(parts[0].shape), parts[0].dtype
    arrived: dict[Move, Tensor] = {}
    sent: list[tuple[Tensor, dist.Work | None]] = []  # tensors are kept until they have arrived
    coming: list[dist.Work | None] = []
    for tag, move in enumerate(moves):
        if rank not in (move.source, move.target):
            continue
        shape[dim] = len(move.streams)
        if rank == move.source:
            first = move.streams.start - before[rank][move.at].start
            piece = parts[move.at].narrow(dim, first, len(move.streams)).contiguous()
            if rank == move.target:
                arrived[move] = piece
            else:
                sent.append((piece, dist.isend(_bytes(piece), move.target, tag=tag)))
        else:
            arrived[move] = torch.empty(shape, dtype=dtype)
            coming.append(dist.irecv(_bytes(arrived[move]), move.source, tag=tag))
    for work in (*coming, *(work for _, work in sent)):
        if work is not None:
            work.wait()
    shape[dim] = 0
    found = [[torch.empty(shape, dtype=dtype)] for _ in after[rank]]
    for move, piece in arrived.items():
        found[move.to].append(piece)
    return [torch.cat(pieces, dim) for pieces in found]


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory as bytes, so that every data type can be sent."""
    return tensor.view(-1).view(torch.uint8)
