"""The division of streams among parts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlpretrain.data.samples import Sample, TrainSamples, empty_sample
from xlpretrain.objectives import CausalLM
from xlpretrain.objectives.mixed.objective import MixedObjective, Part
from xlpretrain.objectives.mixed.samples import GroupedSamples
from xlpretrain.objectives.mixed.shares import divide_streams


@given(st.integers(1, 300), st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_sizes_differ_from_the_shares_by_less_than_one_stream_and_leave_no_stream_over(num_streams, shares):
    found = divide_streams(num_streams, shares)
    assert [stream for part in found for stream in part] == list(range(num_streams))
    for part, share in zip(found, shares, strict=True):
        assert abs(len(part) - num_streams * share / sum(shares)) < 1


@pytest.mark.parametrize(
    ("num_streams", "shares", "sizes"),
    [
        (10, [0.3, 0.7], [3, 7]),
        (100, [0.29, 0.71], [29, 71]),
        (16, [1 / 3, 1 / 3, 1 / 3], [6, 5, 5]),
        (256, [0.9375, 0.0625], [240, 16]),
        (8, [0.97, 0.03], [8, 0]),
    ],
)
def test_largest_remainders(num_streams, shares, sizes):
    assert [len(part) for part in divide_streams(num_streams, shares)] == sizes


@dataclass(frozen=True)
class Counted(TrainSamples):
    """Samples without tokens."""

    name: str

    @property
    def steps_per_epoch(self) -> float:
        return 10.0

    def sample(self, *, step: int, stream: int) -> Sample:
        return empty_sample(stream)

    def epochs(self, step: int) -> dict[str, float]:
        return {"all": step / 10}


def mix(*shares: float) -> MixedObjective:
    return MixedObjective(
        parts=tuple(Part(name=f"p{i}", share=share, objective=CausalLM(seq_len=16)) for i, share in enumerate(shares))
    )


def test_shares_are_exact_over_5000_steps_whatever_the_ranks_and_resumes():
    num_streams, steps = 16, 5000
    groups = mix(0.62, 0.13, 0.25).stream_groups(num_streams, 0)
    samples = GroupedSamples([Counted(str(group.number)) for group in groups], [group.streams for group in groups])
    assert samples.steps_per_epoch == pytest.approx(10 / len(groups))
    assert samples.epochs(5) == {"all": pytest.approx(0.5 * len(groups))}
    for worlds in ([1], [2], [3], [1, 3, 2]):  # the last run resumes on other numbers of ranks
        counts, by_stream = Counter[int](), Counter[int]()
        for step in range(steps):
            world_size = worlds[step * len(worlds) // steps]
            number = set()
            for rank in range(world_size):
                cuts = [cut for group in groups for cut in group.micro_batches(rank, world_size, 3)]
                number.add(len(cuts))
                for cut in cuts:
                    parts = {samples.sample(step=step, stream=stream).part for stream in {*cut[:1], *cut[-1:]}}
                    assert len(parts) <= 1, "a micro-batch is of one part"
                    counts.update({part: len(cut) for part in parts})
                    by_stream.update(cut)
            assert len(number) == 1, "all ranks have equally many micro-batches"
        assert [counts[group.number] for group in groups] == [steps * len(group.streams) for group in groups]
        assert set(by_stream.values()) == {steps} and len(by_stream) == num_streams


def test_ranks_pass_through_the_parts_in_step_even_with_empty_micro_batches():
    groups = mix(0.9, 0.1).stream_groups(10, 0)
    assert [group.streams for group in groups] == [range(9), range(9, 10)]
    found = [[group.micro_batches(rank, 3, 2) for group in groups] for rank in range(3)]
    assert [len(of_rank[1]) for of_rank in found] == [1, 1, 1]
    assert [of_rank[1][0] for of_rank in found] == [range(9, 9), range(9, 9), range(9, 10)]
    assert [group.streams_of(2, 3) for group in groups] == [range(6, 9), range(9, 10)]
