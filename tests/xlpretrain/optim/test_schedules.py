import pytest

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.optim.schedules import WSD, Cosine, InverseSqrt, Linear, Points


@pytest.mark.parametrize("kind", [Cosine, Linear, InverseSqrt, WSD])
def test_warm_up_is_linear_and_ends_at_the_top(kind):
    schedule = kind(warmup_steps=4, total_steps=100)
    assert [schedule.factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule.factor(4) == pytest.approx(1.0, abs=0.12)


def test_the_warm_up_alone_is_one_update_ahead_of_the_tensorflow_code():
    """BERT's and ALBERT's optimization.py: both rates are functions of the completed updates."""
    schedule, warmup, total = Linear(warmup_steps=10, total_steps=100, decay_from="start"), 10, 100
    theirs = [step / warmup if step < warmup else 1 - step / total for step in range(total + 1)]
    ours = [schedule.factor(step) for step in range(total + 1)]
    assert ours[: warmup - 1] == theirs[1:warmup]
    assert ours[warmup:] == pytest.approx(theirs[warmup:])


def test_linear_and_cosine_end_at_the_minimum():
    for kind in (Linear, Cosine):
        schedule = kind(warmup_steps=10, total_steps=110, min_lr_ratio=0.1)
        assert schedule.factor(60) == pytest.approx(0.55)
        assert schedule.factor(110) == schedule.factor(10_000) == pytest.approx(0.1)


def test_linear_from_the_start_jumps_where_the_warm_up_ends():
    schedule = Linear(warmup_steps=10, total_steps=100, decay_from="start", min_lr_ratio=0.5)
    assert schedule.factor(9) == 1.0
    assert schedule.factor(10) == pytest.approx(1 - 0.1 * 0.5)
    assert schedule.factor(50) == pytest.approx(0.75)
    assert schedule.factor(100) == schedule.factor(1000) == pytest.approx(0.5)


def test_inverse_sqrt_halves_when_steps_quadruple():
    schedule = InverseSqrt(warmup_steps=100, total_steps=10_000)
    assert schedule.factor(399) == pytest.approx(0.5)
    assert schedule.factor(1599) == pytest.approx(0.25)


def test_wsd_is_constant_and_then_falls():
    schedule = WSD(warmup_steps=0, total_steps=100, decay_ratio=0.2)
    assert schedule.factor(79) == 1.0
    assert schedule.factor(90) == pytest.approx(0.5)
    assert schedule.factor(100) == pytest.approx(0.0)


def test_a_warm_up_longer_than_the_schedule_is_refused():
    with pytest.raises(ConfigError, match=r"warmup_steps +must be below total_steps \(5\), got 10"):
        schema.validate(Linear, {"warmup_steps": 10, "total_steps": 5}, "x.yaml")


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", [1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [1.0, 0.868198, 0.55, 0.231802, 0.1]),
        ("1-sqrt", [1.0, 0.55, 0.363604, 0.220577, 0.1]),
    ],
)
def test_wsd_decays_in_the_last_steps_in_a_shape(shape: str, values: list[float]):
    schedule = WSD(warmup_steps=10, total_steps=100, decay_steps=40, decay_shape=shape, min_lr_ratio=0.1)
    assert [schedule.factor(step) for step in range(10, 60)] == [1.0] * 50
    assert [schedule.factor(step) for step in range(60, 101, 10)] == pytest.approx(values, abs=1e-6)
    assert schedule.factor(1000) == pytest.approx(0.1)
    by_ratio = WSD(warmup_steps=10, total_steps=100, decay_ratio=4 / 9, decay_shape=shape, min_lr_ratio=0.1)
    assert [by_ratio.factor(step) for step in range(101)] == pytest.approx([schedule.factor(s) for s in range(101)])


def test_a_decay_longer_than_the_schedule_is_refused():
    with pytest.raises(ConfigError, match=r"decay_steps +must be at most total_steps - warmup_steps \(90\), got 91"):
        schema.validate(WSD, {"warmup_steps": 10, "total_steps": 100, "decay_steps": 91}, "x.yaml")


def test_points_are_joined_by_lines_and_stay_constant_outside():
    schedule = Points(points=((0.1, 0.5), (0.3, 1.0), (0.8, 1.0), (0.8, 0.4), (1.0, 0.0)), total_steps=100)
    found = [schedule.factor(step) for step in (0, 10, 20, 30, 79, 80, 90, 100, 500)]
    assert found == pytest.approx([0.5, 0.5, 0.75, 1.0, 1.0, 0.4, 0.2, 0.0, 0.0])
    in_steps = Points(points=((0, 0.0), (4, 1.0), (8, 3.0)), position="step", total_steps=1000)
    assert [in_steps.factor(step) for step in (0, 1, 4, 6, 8, 999)] == [0.0, 0.25, 1.0, 2.0, 3.0, 3.0]
    assert Points(points=((0.5, 0.7),), total_steps=10).factor(3) == 0.7


def test_two_points_make_a_linear_schedule():
    points, linear = Points(points=((0, 1), (1, 0.2)), total_steps=37), Linear(min_lr_ratio=0.2, total_steps=37)
    assert [points.factor(k) for k in range(40)] == pytest.approx([linear.factor(k) for k in range(40)], abs=1e-15)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"points": []}, "points"),
        ({"points": [[0, 1], [0.5, -1]]}, r"points.1.1"),
        ({"points": [[0, 1], [0.5, 1, 2]]}, r"points.1"),
        ({"points": [[0.5, 1], [0.1, 0]]}, r"points.1 +must not lie before the point at 0.5, got 0.1"),
        ({"points": [[0, 1], [200, 0]]}, r"points +must lie within 0 and 1, got 200; for steps, set .*position=step"),
        ({"points": [[0, 1], [1, 0]], "warmup_steps": 10}, r"warmup_steps +must be 0 with type points, .* got 10"),
        ({"points": [[0, 1], [1, 0]], "min_lr_ratio": 0.1}, r"min_lr_ratio +must be 0 with type points, .* got 0.1"),
    ],
)
def test_points_that_make_no_schedule_are_refused(keys, problem):
    with pytest.raises(ConfigError, match=problem):
        schema.validate(Points, keys, "x.yaml")
