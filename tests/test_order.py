import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlpretrain.data.order import Contiguous, mix, permute


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_permute_is_a_bijection(size: int, key: int):
    assert sorted(permute(i, size=size, key=key) for i in range(size)) == list(range(size))


def test_permutations_of_different_keys_differ_and_look_random():
    size = 1000
    first, second = ([permute(i, size=size, key=key) for i in range(size)] for key in (1, 2))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert sum(abs(a - b) == 1 for a, b in pairwise(first)) < 10


def test_permute_refuses_an_index_outside():
    with pytest.raises(IndexError, match="outside"):
        permute(5, size=5, key=0)


def test_mix_depends_on_every_value_and_on_their_order():
    assert len({mix(1, 2, 3), mix(3, 2, 1), mix(1, 2), mix(1, 2, 4), mix(0, 2, 3)}) == 5


orders = st.builds(
    Contiguous,
    num_blocks=st.integers(1, 40),
    rows_per_block=st.integers(1, 12),
    num_streams=st.integers(1, 9),
    seed=st.integers(0, 2**63),
)


@given(orders)
@settings(max_examples=60, deadline=None)
def test_every_block_is_visited_exactly_once_an_epoch(order: Contiguous):
    visits = Counter()
    epochs = 3
    # Long enough for every stream to begin each of its visits of the first three epochs.
    for stream in range(order.num_streams):
        for step in range((epochs * order.num_blocks // order.num_streams + 2) * order.rows_per_block):
            place = order.place(step=step, stream=stream)
            if place.epoch < epochs and (place.row == 0 or step == 0):
                visits[place.epoch, place.block] += 1
    assert visits == Counter({(e, b): 1 for e in range(epochs) for b in range(order.num_blocks)})


@given(orders, st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_a_stream_reads_a_block_row_after_row(order: Contiguous, step: int):
    for stream in range(order.num_streams):
        here, after = (order.place(step=s, stream=stream) for s in (step, step + 1))
        if after.row:
            assert (after.block, after.row, after.epoch) == (here.block, here.row + 1, here.epoch)
            assert order.rows_behind(step=step + 1, stream=stream) == order.rows_behind(step=step, stream=stream) + 1
        else:
            assert here.row == order.rows_per_block - 1
            assert order.rows_behind(step=step + 1, stream=stream) == 0


def test_rows_behind_counts_only_what_was_read_since_the_run_began():
    order = Contiguous(num_blocks=10, rows_per_block=8, num_streams=2, seed=0)
    assert order.place(step=0, stream=1).row == 4
    assert order.rows_behind(step=0, stream=1) == 0
    assert order.rows_behind(step=3, stream=1) == 3
    assert order.rows_behind(step=4, stream=1) == 0


def test_streams_do_not_change_block_together():
    order = Contiguous(num_blocks=100, rows_per_block=64, num_streams=16, seed=0)
    changes = Counter(step for step in range(64) for s in range(16) if order.place(step=step, stream=s).row == 0)
    assert max(changes.values()) == 1


def test_a_far_seek_needs_no_table():
    order = Contiguous(num_blocks=10**12 // 2**20, rows_per_block=2048, num_streams=512, seed=3)
    order.place(step=1, stream=1)
    started = time.perf_counter()
    places = [order.place(step=1_000_000, stream=s) for s in range(512)]
    seconds = time.perf_counter() - started
    assert len({p.block for p in places}) == 512
    print(f"seek of 512 streams: {seconds * 1e3:.2f} ms")
