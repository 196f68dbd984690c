"""Streams that move between ranks when their division changes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from xlpretrain import distributed
from xlpretrain.train.stages.moves import divide, plan_moves, rearrange

sizes = st.tuples(st.integers(1, 5), st.integers(5, 24), st.integers(5, 24), st.integers(0, 9))


@given(sizes)
def test_every_stream_moves_once_from_where_it_was_to_where_it_belongs(of: tuple[int, int, int, int]) -> None:
    world_size, first, second, more = of
    total = max(first, second) + more
    before, after = divide([first], total, world_size), divide([second], total, world_size)
    moves = plan_moves(before, after)
    assert sorted(stream for move in moves for stream in move.streams) == list(range(total))
    for target, ranges in enumerate(after):
        for to, wanted in enumerate(ranges):
            arriving = [move.streams for move in moves if (move.target, move.to) == (target, to)]
            assert [stream for streams in arriving for stream in streams] == list(wanted)
    for move in moves:
        assert set(move.streams) <= set(before[move.source][move.at])
        assert set(move.streams) <= set(after[move.target][move.to])


@given(sizes, st.integers(1, 4))
def test_the_active_streams_are_divided_as_in_a_run_of_that_batch_size(
    of: tuple[int, int, int, int], size: int
) -> None:
    world_size, active, _, more = of
    divided = divide([active], active + more, world_size)
    assert [ranges[0] for ranges in divided] == [
        distributed.streams_of(r, world_size, active) for r in range(world_size)
    ]
    assert len(divided[0]) == (2 if more else 1)
    cuts = [
        distributed.micro_batches(rank, world_size, num_streams=active, micro_batch_size=size)
        for rank in range(world_size)
    ]
    assert len({len(of_rank) for of_rank in cuts}) == 1
    assert [stream for of_rank in cuts for cut in of_rank for stream in cut] == list(range(active))


def test_each_group_is_divided_among_all_ranks() -> None:
    assert divide([3, 2], 5, 2) == [[range(1), range(3, 4)], [range(1, 3), range(4, 5)]]
    one, two = (torch.zeros(1, 2, length) for length in (4, 6))
    assert rearrange([one, two], divide([2, 2], 4, 1), divide([2, 2], 4, 1), dim=1) == [one, two]


def test_on_one_rank_the_tensors_are_cut_anew() -> None:
    before, after = divide([3], 8, 1), divide([6], 8, 1)
    streams = torch.arange(8.0).repeat(2, 1)
    first, second = rearrange([streams[:, :3], streams[:, 3:]], before, after, dim=1)
    assert torch.equal(first, streams[:, :6]) and torch.equal(second, streams[:, 6:])
