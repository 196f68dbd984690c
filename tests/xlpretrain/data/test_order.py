import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlpretrain.data.order import BlockPosition, Contiguous, Shuffled, hash_ints, permute, permute_array


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=50)
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
    assert len({hash_ints(1, 2, 3), hash_ints(3, 2, 1), hash_ints(1, 2), hash_ints(1, 2, 4), hash_ints(0, 2, 3)}) == 5


orders = st.builds(
    Contiguous,
    num_blocks=st.integers(1, 40),
    samples_per_block=st.integers(1, 12),
    num_streams=st.integers(1, 9),
    seed=st.integers(0, 2**63),
)


@given(orders)
@settings(max_examples=60)
def test_every_block_is_visited_exactly_once_an_epoch(order: Contiguous):
    visits = Counter()
    epochs = 3
    # Long enough for every stream to begin each of its visits of the first three epochs.
    for stream in range(order.num_streams):
        for step in range((epochs * order.num_blocks // order.num_streams + 2) * order.samples_per_block):
            place = order.position(step=step, stream=stream)
            if place.epoch < epochs and (place.sample == 0 or step == 0):
                visits[place.epoch, place.block] += 1
    assert visits == Counter({(e, b): 1 for e in range(epochs) for b in range(order.num_blocks)})


@given(orders, st.integers(0, 200))
@settings(max_examples=100)
def test_a_stream_reads_a_block_row_after_row(order: Contiguous, step: int):
    for stream in range(order.num_streams):
        here, after = (order.position(step=s, stream=stream) for s in (step, step + 1))
        if after.sample:
            assert (after.block, after.sample, after.epoch) == (here.block, here.sample + 1, here.epoch)
            assert (
                order.visit(step=step + 1, stream=stream).samples_read
                == order.visit(step=step, stream=stream).samples_read + 1
            )
        else:
            assert here.sample == order.samples_per_block - 1
            assert order.visit(step=step + 1, stream=stream).samples_read == 0


def test_rows_behind_counts_only_what_was_read_since_the_run_began():
    order = Contiguous(num_blocks=10, samples_per_block=8, num_streams=2, seed=0)
    assert order.position(step=0, stream=1).sample == 4
    assert order.visit(step=0, stream=1).samples_read == 0
    assert order.visit(step=3, stream=1).samples_read == 3
    assert order.visit(step=4, stream=1).samples_read == 0


def test_streams_do_not_change_block_together():
    order = Contiguous(num_blocks=100, samples_per_block=64, num_streams=16, seed=0)
    changes = Counter(step for step in range(64) for s in range(16) if order.position(step=step, stream=s).sample == 0)
    assert max(changes.values()) == 1


def test_a_far_seek_needs_no_table():
    order = Contiguous(num_blocks=10**12 // 2**20, samples_per_block=2048, num_streams=512, seed=3)
    order.position(step=1, stream=1)
    started = time.perf_counter()
    places = [order.position(step=1_000_000, stream=s) for s in range(512)]
    seconds = time.perf_counter() - started
    assert len({p.block for p in places}) == 512
    print(f"seek of 512 streams: {seconds * 1e3:.2f} ms")


shuffles = st.builds(
    Shuffled,
    st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any).map(np.array),
    num_streams=st.integers(1, 7),
    seed=st.integers(0, 2**63),
    window_blocks=st.integers(1, 40),
)


def take(order: Shuffled, samples: range) -> list[BlockPosition]:
    """Samples by their number over all steps and streams."""
    return [order.position(step=k // order.num_streams, stream=k % order.num_streams) for k in samples]


@given(shuffles)
@settings(max_examples=60)
def test_shuffled_rows_come_exactly_once_an_epoch(order: Shuffled):
    samples = [
        (block, sample)
        for block, batch_size in enumerate(order.samples_of_block.tolist())
        for sample in range(batch_size)
    ]
    for epoch in range(3):
        places = take(order, range(epoch * order.num_samples, (epoch + 1) * order.num_samples))
        assert {place.epoch for place in places} == {epoch}
        assert sorted((place.block, place.sample) for place in places) == samples


@given(shuffles)
@settings(max_examples=60)
def test_shuffled_rows_touch_one_window_of_blocks_after_the_other(order: Shuffled):
    blocks = [place.block for place in take(order, range(order.num_samples))]
    first_seen = list(dict.fromkeys(blocks))
    last_seen = {block: k for k, block in enumerate(blocks)}
    # As many blocks are in use at a time as a window has, blocks without samples counted in.
    for k in range(len(blocks)):
        in_use = [block for block in first_seen if blocks.index(block) <= k <= last_seen[block]]
        assert len(in_use) <= order.window_blocks


def test_shuffled_rows_are_the_same_for_any_number_of_streams():
    orders = [Shuffled(np.full(20, 8), num_streams=n, seed=3, window_blocks=4) for n in (1, 3, 16)]
    assert take(orders[0], range(400)) == take(orders[1], range(400)) == take(orders[2], range(400))
    assert [order.steps_per_epoch for order in orders] == [160, 160 / 3, 10]
    assert orders[2].visit(step=9, stream=2).samples_read == 0


def test_epochs_seeds_and_windows_are_shuffled_differently():
    order = Shuffled(np.full(50, 20), num_streams=1, seed=0, window_blocks=10)
    other = Shuffled(np.full(50, 20), num_streams=1, seed=1, window_blocks=10)
    passes = [take(order, range(1000)), take(order, range(1000, 2000)), take(other, range(1000))]
    passes = [[(place.block, place.sample) for place in places] for places in passes]
    for i in range(3):
        assert sum(a == b for a, b in zip(passes[i], passes[i - 1], strict=True)) < 10
    samples = [[sample for _, sample in passes[0][start : start + 200]] for start in (0, 200)]
    assert sum(a == b for a, b in zip(*samples, strict=True)) < 40
    assert sum(a[0] == b[0] for a, b in pairwise(passes[0])) < 200


def test_a_far_seek_in_shuffled_rows_costs_one_table_of_blocks():
    order = Shuffled(np.full(1_000_000, 2000), num_streams=512, seed=3, window_blocks=64)
    started = time.perf_counter()
    first = order.position(step=10**9, stream=0)
    ready = time.perf_counter()
    places = [order.position(step=10**9, stream=s) for s in range(512)]
    seconds = time.perf_counter() - ready
    assert places[0] == first
    print(f"table of a million blocks: {ready - started:.2f} s; seek of 512 streams: {seconds * 1e3:.1f} ms")
    assert order._cached_epoch.cache_info().misses == 1
    assert order._cached_positions.cache_info().misses == 1


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=50)
def test_permuting_many_at_once_is_permuting_each(size: int, key: int):
    assert permute_array(np.arange(size), size=size, key=key).tolist() == [
        permute(i, size=size, key=key) for i in range(size)
    ]
