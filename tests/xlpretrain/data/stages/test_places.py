"""Contiguous reading over stages, against a simulation that moves one stream after another."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xlpretrain.data.order import Contiguous
from xlpretrain.data.stages.places import ContiguousStage, StreamPlaces, block_number

stages = st.lists(
    st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 25)),  # streams, new tokens, steps
    min_size=1,
    max_size=4,
)


def chain(block_tokens: int, recipe: list[tuple[int, int, int]]) -> list[ContiguousStage]:
    places = StreamPlaces.at_start(
        total=max(streams for streams, _, _ in recipe),
        num_streams=recipe[0][0],
        new_tokens=recipe[0][1],
        block_tokens=block_tokens,
    )
    found = []
    for streams, new_tokens, steps in recipe:
        found.append(ContiguousStage(places, num_streams=streams, new_tokens=new_tokens))
        places = found[-1].after(steps)
    return found


@given(st.integers(4, 30), stages)
@settings(max_examples=300, deadline=None)
def test_no_token_is_read_twice_and_those_between_are_skipped_as_said(
    block_tokens: int, recipe: list[tuple[int, int, int]]
) -> None:
    read: dict[tuple[int, int], int] = {}  # (visit, token) -> stream
    last: dict[int, tuple[int, int]] = {}  # stream -> visit and end of what it has read
    reader: dict[int, int] = {}
    for stage, (streams, new_tokens, steps) in zip(chain(block_tokens, recipe), recipe, strict=True):
        skipped = 0
        for step in range(steps):
            for stream in range(streams):
                visit, sample, in_memory = stage.visit(step=step, stream=stream)
                begin, end = sample * new_tokens, min((sample + 1) * new_tokens, block_tokens)
                assert begin < block_tokens and reader.setdefault(visit, stream) == stream, "a block is one stream's"
                before, place = last.get(stream, (visit, begin))
                if visit == before:
                    assert 0 <= begin - place < new_tokens, "it goes on at the next multiple"
                else:
                    assert begin == 0 and block_tokens - place < new_tokens
                if step == 0:
                    skipped += begin - place if visit == before else block_tokens - place
                gapless = 0
                while (visit, begin - gapless - 1) in read:
                    gapless += 1
                assert in_memory == gapless
                for token in range(begin, end):
                    assert (visit, token) not in read
                    read[visit, token] = stream
                last[stream] = (visit, end)
        assert skipped == stage.skipped_tokens < streams * new_tokens


@given(st.integers(4, 30), stages)
@settings(max_examples=200, deadline=None)
def test_visits_are_numbered_in_the_order_in_which_they_begin_without_gaps(
    block_tokens: int, recipe: list[tuple[int, int, int]]
) -> None:
    seen = set(range(recipe[0][0]))  # those that begin before the first step
    found = chain(block_tokens, recipe)
    for i, (stage, (streams, _, steps)) in enumerate(zip(found, recipe, strict=True)):
        assert stage.entry.num_begun == len(seen)
        for step in range(steps):
            visits = {stage.visit(step=step, stream=stream).visit for stream in range(streams)}
            new = visits - seen
            assert new == set(range(len(seen), len(seen) + len(new)))
            seen |= new
        assert stage.after(steps).num_begun == len(seen), i


@given(st.integers(1, 9), st.integers(4, 40), st.integers(1, 9), st.integers(0, 200), st.integers(1, 50))
@settings(max_examples=200)
def test_a_run_of_one_stage_reads_as_contiguous_order_does(
    streams: int, block_tokens: int, new_tokens: int, step: int, blocks: int
) -> None:
    order = Contiguous(blocks, math.ceil(block_tokens / new_tokens), streams, seed=3)
    [stage] = chain(block_tokens, [(streams, new_tokens, 0)])
    for stream in range(streams):
        expected, found = order.visit(step=step, stream=stream), stage.visit(step=step, stream=stream)
        number = block_number(found.visit, num_streams=streams, reversed_below=None)
        assert (number, found.sample) == (expected.number, expected.sample)
        assert found.in_memory == expected.samples_read * new_tokens


@given(st.integers(4, 30), stages, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_what_a_stage_reads_does_not_depend_on_later_ones(
    block_tokens: int, recipe: list[tuple[int, int, int]], kept: int
) -> None:
    shorter = recipe[: kept + 1]
    for whole, part, (streams, _, steps) in zip(
        chain(block_tokens, recipe), chain(block_tokens, shorter), shorter, strict=False
    ):
        for step in {0, steps // 2, steps}:
            for stream in range(streams):
                assert whole.visit(step=step, stream=stream) == part.visit(step=step, stream=stream)


@given(st.integers(1, 6), st.integers(0, 60))
def test_blocks_are_numbered_without_repeats(streams: int, begun: int) -> None:
    below = -(-begun // streams) * streams
    numbers = [block_number(visit, num_streams=streams, reversed_below=below) for visit in range(200)]
    assert sorted(numbers) == list(range(200))


def test_streams_that_rest_keep_their_places() -> None:
    few = chain(64, [(8, 4, 5), (3, 8, 11), (8, 4, 1)])
    resting, again = few[1].entry, few[2].entry
    assert np.array_equal(resting.offsets[3:], again.offsets[3:]) and np.array_equal(
        resting.visits[3:], again.visits[3:]
    )
    assert np.array_equal(resting.in_memory[3:], again.in_memory[3:])
    assert few[2].visit(step=0, stream=7).in_memory == resting.in_memory[7] > 0
