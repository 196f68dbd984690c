"""The relative effective context length, against figures computed by hand from the paper's definition."""

import math

import numpy as np
import pytest

from xlpretrain.evaluation.context_length import effective_context_lengths, is_even, relative_gain


def test_the_context_of_one_model_grows_while_perplexity_falls_by_a_hundredth():
    # Perplexities 100, 50, 49.6: the first step halves it, the second reduces it by 0.8 %.
    losses = np.log([[[100.0, 100.0], [50.0, 50.0], [49.6, 49.6], [10.0, 10.0]]])
    (found,) = effective_context_lengths(losses, [100, 200, 300, 400], share=1.0)
    assert (found.num_tokens, found.is_bound) == (200, False)
    assert found.gains == pytest.approx((0.5, 0.008))
    (found,) = effective_context_lengths(losses, [100, 200, 300, 400], share=1.0, threshold=0.005)
    assert (found.num_tokens, found.is_bound) == (400, True)  # nothing longer was measured
    assert found.gains == pytest.approx((0.5, 0.008, 1 - 10 / 49.6))


def test_a_group_shares_the_best_predictions_from_the_shorter_context():
    # Two models, two lengths, two tokens.
    losses = np.array([[[2.0, 1.0], [0.5, 3.0]], [[1.0, 3.0], [0.9, 2.9]]])
    # b(c, t) = 1, 1. The first model: min(1, 0.5) and min(1, 3), on average 0.75; the second: 0.9 and 1, 0.95.
    gains = [relative_gain(losses, model=model, short=0, long=1, share=1.0) for model in (0, 1)]
    assert gains == pytest.approx([1 - math.exp(-0.25), 1 - math.exp(-0.05)])
    # Alone, the second model is compared with its own losses 1 and 3: 0.9 and 2.9.
    assert relative_gain(losses[1:], model=0, short=0, long=1, share=1.0) == pytest.approx(1 - math.exp(-0.1))
    found = effective_context_lengths(losses, [5, 10], share=1.0, threshold=0.1)
    assert [(each.num_tokens, each.is_bound) for each in found] == [(10, True), (5, False)]


def test_a_model_that_is_worse_everywhere_gains_nothing_in_its_group():
    better = np.array([[1.0, 1.0, 1.0], [0.9, 0.9, 0.9]])
    losses = np.stack([better, better + 2])
    found = effective_context_lengths(losses, [8, 16], share=1.0)
    assert [(each.num_tokens, each.gains) for each in found] == [
        (16, pytest.approx((1 - math.exp(-0.1),))),
        (8, (0.0,)),
    ]
    (alone,) = effective_context_lengths(losses[1:], [8, 16], share=1.0)
    assert alone.num_tokens == 16


def test_only_the_hardest_tokens_for_the_best_of_the_group_count():
    # b = 1, 2, 4, 3, 0.5; the hardest two of five: the third and the fourth.
    short = [[1.0, 2.0, 4.0, 9.0, 0.5], [9.0, 9.0, 9.0, 3.0, 9.0]]
    long = [[0.0, 0.0, 3.5, 2.0, 0.0], [9.0, 9.0, 9.0, 9.0, 9.0]]
    losses = np.stack([short, long], axis=1)
    assert losses.shape == (2, 2, 5)
    for share, gain in ((0.4, (0.5 + 1) / 2), (0.2, 0.5), (0.01, 0.5), (1.0, (1 + 2 + 0.5 + 1 + 0.5) / 5)):
        found = relative_gain(losses, model=0, short=0, long=1, share=share)
        assert found == pytest.approx(1 - math.exp(-gain))


def test_impossible_arguments_are_refused():
    assert is_even([3, 6, 9]) and not is_even([3]) and not is_even([3, 4, 6]) and not is_even([3, 3, 3])
    losses = np.ones((1, 3, 4))
    for lengths in ([1, 2], [1, 2, 4], [3, 2, 1]):
        with pytest.raises(ValueError, match="expected 3 ascending lengths with equal steps"):
            effective_context_lengths(losses, lengths, share=1.0)
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="expected a share above 0"):
            effective_context_lengths(losses, [1, 2, 3], share=share)
