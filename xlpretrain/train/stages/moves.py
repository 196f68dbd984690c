"""Moves of what belongs to streams between ranks, when their division among the ranks changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

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


def divide(sizes: Sequence[int], num_streams: int, world_size: int) -> list[list[range]]:
    """The streams of each rank: its share of each group, and of the streams that rest after them, if there are any.

    sizes: the number of active streams of each group.
    """
    resting = num_streams - sum(sizes)
    groups = list(pairwise(accumulate([*sizes, resting] if resting else sizes, initial=0)))
    found = []
    for rank in range(world_size):
        shares = [distributed.streams_of(rank, world_size, stop - start) for start, stop in groups]
        found.append(
            [range(start + share.start, start + share.stop) for (start, _), share in zip(groups, shares, strict=True)]
        )
    return found


def plan_moves(before: Division, after: Division) -> list[Move]:
    """The moves that turn one division of streams into another, by target rank, its ranges, and their streams.

    Streams that stay on their rank are moves from a rank to itself.
    """
    moves = [
        Move(source, target, at, to, both)
        for target, theirs in enumerate(after)
        for to, wanted in enumerate(theirs)
        for source, ours in enumerate(before)
        for at, had in enumerate(ours)
        if (both := range(max(wanted.start, had.start), min(wanted.stop, had.stop)))
    ]
    return sorted(moves, key=lambda move: (move.target, move.to, move.streams.start))


def rearrange(parts: Sequence[Tensor], before: Division, after: Division, *, dim: int) -> list[Tensor]:
    """Move streams between ranks. Every rank must call it, also one without streams.

    Args:
        parts: a tensor on the CPU for each range of this rank in `before`, with the streams as dimension `dim`.
        dim: the same for all ranks, as the other dimensions and the data type. Between equal divisions the ranges may
            differ in the other dimensions.

    Returns:
        A tensor for each range of this rank in `after`.
    """
    if before == after:
        return list(parts)
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
