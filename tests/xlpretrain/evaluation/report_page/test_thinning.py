"""Selection of points: their number, extremes, means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlpretrain.evaluation.report_page.thinning import thin


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(4, 300), st.integers(0, 99))
def test_few_points_remain_with_the_extremes_and_both_ends(count: int, max_points: int, seed: int):
    rng = np.random.default_rng(seed)
    steps, values = np.cumsum(rng.integers(1, 9, count)), rng.standard_cauchy(count)
    curve = thin(steps, values, max_points)
    assert len(curve.values) <= max_points
    assert (np.diff(curve.steps) > 0).all()
    original = dict(zip(steps.tolist(), values.tolist(), strict=True))
    assert all(original[step] == value for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
    assert {curve.values.min(), curve.values.max()} == {values.min(), values.max()}
    assert (curve.steps[0], curve.steps[-1]) == (steps[0], steps[-1])


def test_every_bucket_keeps_its_extremes():
    """A spike of one point at any place survives."""
    for place in range(0, 10_000, 97):
        values = np.sin(np.arange(10_000.0))
        values[place] = 5.0
        curve = thin(np.arange(10_000), values, 100)
        assert curve.values[curve.steps == place] == [5.0]


def test_means_weigh_all_points_alike():
    values = np.random.default_rng(0).gamma(2.0, size=12_345)
    curve = thin(np.arange(12_345), values, 1000)
    sizes = np.diff(np.linspace(0, 12_345, len(curve.means) + 1).astype(int))
    assert (curve.means * sizes).sum() / sizes.sum() == pytest.approx(values.mean())
    assert (curve.mean_steps * sizes).sum() / sizes.sum() == pytest.approx(np.arange(12_345).mean())
    assert len(curve.means) <= 500


def test_a_curve_in_stairs_is_kept_exactly():
    steps, values = np.arange(50_000), np.repeat([1.0, 2.0, 1.5], [20_000, 1, 29_999])
    curve = thin(steps, values, 100)
    np.testing.assert_equal(curve.steps, [0, 19_999, 20_000, 20_001, 49_999])
    np.testing.assert_allclose(np.interp(steps, curve.steps, curve.values), values)


def test_unknown_values_are_dropped():
    curve = thin(np.arange(4), np.array([np.nan, 1.0, np.nan, 2.0]))
    np.testing.assert_equal(curve.steps, [1, 3])
    assert not len(thin(np.arange(3), np.full(3, np.nan)).values)
