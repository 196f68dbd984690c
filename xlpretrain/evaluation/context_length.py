"""The relative effective context length (RECL) of Transformer-XL (Dai et al. 2019, arXiv:1901.02860, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

SHARES = (0.1, 0.5, 1.0)
"""The shares r of hard tokens in table 8 of the paper."""
THRESHOLD = 0.01
"""The relative gain below which a longer context counts as useless in the paper."""


@dataclass(frozen=True)
class ContextLength:
    """An effective context length in tokens. is_bound: True if it is a lower bound, since no longer one was measured.

    gains: relative gain of each step to a longer context, from the shortest one to the first step below the threshold.
    """

    num_tokens: int
    is_bound: bool
    gains: tuple[float, ...]


def effective_context_lengths(
    losses: Float[np.ndarray, "N C T"], lengths: Sequence[int], *, share: float, threshold: float = THRESHOLD
) -> list[ContextLength]:
    """The relative effective context length of each model of a group.

    From the shortest context on, the context grows step by step while the model's relative gain is at least
    `threshold`. A group of one model compares it with itself only.

    Args:
        losses: nats of N models, with C context lengths, for the same T tokens.
        lengths: the context lengths, ascending by equal steps.
        share: the share r of tokens to consider, above 0 and at most 1: those hardest for the group's best model with
            the shorter context.

    Raises:
        ValueError: the lengths or shapes do not fit, or `share` is out of range.
    """
    num_models, num_lengths, num_tokens = losses.shape
    if len(lengths) != num_lengths or not is_even(lengths):
        raise ValueError(f"expected {num_lengths} ascending lengths with equal steps, got {list(lengths)}")
    if not 0 < share <= 1 or num_tokens == 0:
        raise ValueError(f"expected a share above 0 and at most 1, of some tokens, got {share} of {num_tokens}")
    return [_follow(losses, lengths, model, share=share, threshold=threshold) for model in range(num_models)]


def is_even(lengths: Sequence[int]) -> bool:
    """True for at least two lengths that ascend by equal steps."""
    steps = np.diff(lengths)
    return len(steps) > 0 and bool(steps[0] > 0 and (steps == steps[0]).all())


def relative_gain(losses: Float[np.ndarray, "N C T"], *, model: int, short: int, long: int, share: float) -> float:
    """The relative reduction of perplexity g_i(c, c') by a model over the group's best predictions with a short one.

    A prediction that is worse than the best one with the short context counts as equal to it. short, long: indices of
    the contexts c and c'.
    """
    baseline = losses[:, short].min(axis=0)
    hardest = np.argsort(-baseline, kind="stable")[: math.ceil(share * len(baseline))]
    before = baseline[hardest].mean(dtype=np.float64)
    after = np.minimum(baseline, losses[model, long])[hardest].mean(dtype=np.float64)
    return float(-np.expm1(after - before))  # (exp before - exp after) / exp before


def _follow(
    losses: Float[np.ndarray, "N C T"], lengths: Sequence[int], model: int, *, share: float, threshold: float
) -> ContextLength:
    gains = list[float]()
    for short in range(len(lengths) - 1):
        gains.append(relative_gain(losses, model=model, short=short, long=short + 1, share=share))
        if gains[-1] < threshold:
            return ContextLength(lengths[short], False, tuple(gains))
    return ContextLength(lengths[-1], True, tuple(gains))
