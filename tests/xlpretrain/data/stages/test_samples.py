"""Samples over stages: what is read, once each, and what is skipped."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlpretrain.data.samples import StreamSamples
from xlpretrain.data.skip_windows import shifted_step
from xlpretrain.data.stages.samples import StageData, StagedSamples
from xlpretrain.data.storage.dataset import TokenDataset

BLOCK, WINDOW = 128, 3
recipes = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([16, 24, 32, 50]), st.integers(1, 30)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def manifest(tiny_dataset: Path) -> TokenDataset:
    return TokenDataset.open(str(tiny_dataset / "train"))


def staged(
    manifest: TokenDataset,
    recipe: list[tuple[int, int, int]],
    *,
    mem_len: int = 0,
    weights: list[list[float]] | None = None,
    seed: int = 5,
    both_ways: bool = False,
    block_tokens: int = BLOCK,
) -> tuple[StagedSamples, int]:
    """Samples of stages of (streams, seq_len, steps), and the number of steps. weights: of two corpora, by stage."""
    found, first = [], 0
    for i, (streams, new_tokens, steps) in enumerate(recipe):
        parts = [
            StreamSamples.of(
                manifest,
                window=new_tokens + 1,
                stride=new_tokens,
                mem_len=mem_len,
                num_streams=streams,
                seed=seed + corpus,
                shuffle_blocks=WINDOW,
                block_tokens=block_tokens,
                both_ways=both_ways,
            )
            for corpus in range(1 if weights is None else 2)
        ]
        found.append(StageData(first, parts, [1.0] if weights is None else weights[i], streams, new_tokens))
        first += steps
    return StagedSamples([] if weights is None else ["a", "b"], found), first


@given(recipes, st.integers(0, 5), st.sampled_from([0, 64]), st.booleans())
@settings(max_examples=60)
def test_no_token_is_read_twice_in_an_epoch(
    manifest: TokenDataset, recipe: list[tuple[int, int, int]], seed: int, mem_len: int, mixed: bool
) -> None:
    weights = [[1.0, 1.0 + i % 2] for i in range(len(recipe))] if mixed else None
    samples, steps = staged(manifest, recipe, mem_len=mem_len, weights=weights, seed=seed)
    read = set()
    for step in range(steps):
        for stream in range(recipe[samples._index(step)][0]):
            place = samples.place(step=step, stream=stream)
            new_tokens = recipe[place.stage][1]
            for offset in range(
                place.position.sample * new_tokens, min((place.position.sample + 1) * new_tokens, BLOCK)
            ):
                key = place.corpus, place.position.epoch, place.position.block, offset
                assert key not in read
                read.add(key)


@given(recipes)
@settings(max_examples=60)
def test_shuffled_reading_skips_the_rest_of_one_window_where_samples_change(
    manifest: TokenDataset, recipe: list[tuple[int, int, int]]
) -> None:
    samples, _ = staged(manifest, recipe)
    for start, (_, before, _), (_, now, _) in zip(samples.starts[1:], recipe, recipe[1:], strict=False):
        same = math.ceil(BLOCK / before) == math.ceil(BLOCK / now)
        of_window = WINDOW * math.ceil(BLOCK / before) * before
        assert start.skipped_tokens == 0 if same else 0 <= start.skipped_tokens < of_window


@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from([0, 64]))
@settings(max_examples=30)
def test_without_a_change_of_samples_every_sample_of_an_epoch_is_read_once(
    manifest: TokenDataset, first: int, second: int, mem_len: int
) -> None:
    """Half an epoch with one batch size, the rest with another; no memory: all samples, with one: all whole blocks."""
    large = 8192  # fewer samples an epoch
    per_block, blocks = 4, manifest.num_blocks * manifest.block_tokens // large
    recipe = [(first, large // per_block, blocks * per_block // first // 2), (second, large // per_block, 4 * blocks)]
    samples, steps = staged(manifest, recipe, mem_len=mem_len, block_tokens=large)
    read = set()
    for step in range(steps):
        for stream in range(recipe[samples._index(step)][0]):
            _, _, (epoch, block, sample), _ = samples.place(step=step, stream=stream)
            if epoch == 0:
                assert (block, sample) not in read
                read.add((block, sample))
    missing = blocks * per_block - len(read)
    assert 0 <= missing <= (first * per_block if mem_len else 0), "streams begin inside of their first blocks"


def test_shares_of_a_mixture_are_exact_from_the_change_on(manifest: TokenDataset) -> None:
    samples, steps = staged(manifest, [(4, 32, 50), (6, 32, 200)], weights=[[1.0, 1.0], [1.0, 3.0]])
    counts = np.zeros(2)
    for step in range(50, steps):
        for stream in reversed(range(6)):
            counts[samples.place(step=step, stream=stream).corpus] += 1
            assert abs(counts[1] - 0.75 * counts.sum()) < 1
    before = samples.epochs(50)
    assert before["a"] == before["b"] and samples.epochs(steps)["b"] > 2 * samples.epochs(steps)["a"]


def test_both_directions_of_a_pair_of_streams_read_the_same_blocks(manifest: TokenDataset) -> None:
    samples, steps = staged(manifest, [(4, 32, 9), (8, 16, 9)], mem_len=64, both_ways=True)
    for step in range(steps):
        for pair in range(2 if step < 9 else 4):
            forward, backward = (samples.place(step=step, stream=2 * pair + way) for way in (0, 1))
            assert forward == backward
            assert not samples.sample(step=step, stream=2 * pair).reversed
            assert samples.sample(step=step, stream=2 * pair + 1).reversed


@pytest.mark.parametrize("mem_len", [0, 64])
def test_stages_begin_at_the_same_training_steps_after_data_was_skipped(manifest: TokenDataset, mem_len: int) -> None:
    recipe = [(4, 32, 20), (6, 16, 20)]
    samples, _ = staged(manifest, recipe, mem_len=mem_len)
    windows = [(5, 9), (30, 33)]
    shifted = samples.with_windows(windows)
    for step in (0, 4, 5, 15, 19, 20, 25, 26, 39):
        data_step, _ = shifted_step(step, windows)
        assert shifted.place(step=data_step, stream=1).stage == (0 if step < 20 else 1)
        if step < 20:
            assert shifted.place(step=data_step, stream=1) == staged(manifest, recipe[:1], mem_len=mem_len)[0].place(
                step=data_step, stream=1
            )


def test_a_seek_computes_as_much_at_any_step(manifest: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, _ = staged(manifest, [(4, 16, 10), (2, 32, 10), (4, 16, 10)], mem_len=64)
    asked = []
    visit = type(samples._stages[0]).visit
    monkeypatch.setattr(
        type(samples._stages[0]), "visit", lambda self, **place: asked.append(self.first) or visit(self, **place)
    )
    for step in (0, 12, 29, 10**9):
        samples.place(step=step, stream=1)
    assert asked == [0, 10, 20, 20], "one look-up each, in the stage of the step"


def test_a_pass_is_counted_over_stages(manifest: TokenDataset) -> None:
    samples, _ = staged(manifest, [(4, 16, 10), (8, 16, 10)])
    alone, _ = staged(manifest, [(4, 16, 10)])
    assert samples.passes(10) == alone.passes(10)
    assert samples.passes(20) == pytest.approx(3 * alone.passes(10))
    assert [start.step for start in samples.starts] == [0, 10]
