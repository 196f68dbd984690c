import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.tokenizing.word_cache import interleave, offsets, ranges, segment_sums

RUNS = st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 99), max_size=4)), max_size=8)


def ragged(runs: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([value for run in runs for value in run], np.uint16), np.array([len(run) for run in runs], np.int64)


@given(RUNS)
def test_runs_are_found_and_put_together(runs: list[tuple[bool, list[int]]]):
    values, sizes = ragged([run for _, run in runs])
    first = offsets(sizes)
    assert [values[i : i + n].tolist() for i, n in zip(first, sizes, strict=True)] == [run for _, run in runs]
    assert values[ranges(first[::-1], sizes[::-1])].tolist() == [value for _, run in runs[::-1] for value in run]
    assert segment_sums(values, sizes).tolist() == [sum(run) for _, run in runs]
    which = np.array([chosen for chosen, _ in runs], bool)
    merged, counts = interleave(
        which, *(ragged([run for chosen, run in runs if chosen == own]) for own in (True, False))
    )
    assert (merged.tolist(), counts.tolist()) == (values.tolist(), sizes.tolist())
