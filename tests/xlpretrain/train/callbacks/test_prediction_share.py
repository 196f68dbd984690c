"""How much is predicted: metrics of a step, and a warning."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from callback_runs import make_context, micro_batch_of
from masked_samples import SIZE, _collator, _row

from xlpretrain.models.pretraining_model import Batch, Loss
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.permutation_lm import PermutationLM
from xlpretrain.train.callbacks.prediction_share import SAMPLES, PredictionShare


def _batch(samples: int, *, first: int = 0, keep: float = 1.0) -> Batch:
    """Samples of 64 tokens, ten of them predicted, of which in all samples but one a share is kept; and a sample
    without any."""
    rng = np.random.default_rng(first)
    texts = [_row(rng.integers(6, SIZE, 61), 30, sample=first + i) for i in range(samples)]
    batch = _collator(seq_len=64)([*texts, _row([], 0, -1)])
    kept = torch.rand(len(batch.targets["mlm"]), generator=torch.Generator().manual_seed(0)) < keep
    kept |= batch.samples_of("mlm") < 1
    targets = {name: values[kept] if "mlm" in name else values for name, values in batch.targets.items()}
    return dataclasses.replace(batch, targets=targets)


def _warnings(batches: list[list[Batch]], *, is_last: bool = False) -> tuple[list[str], dict]:
    objective, warnings = MaskedLM(seq_len=64), []
    context = make_context(objective=objective, max_steps=len(batches) if is_last else 99, print=warnings.append)
    assert objective.predicted_share is not None
    callback = PredictionShare(context, objective.predicted_share, term=objective.terms[0])
    for step, of_step in enumerate(batches):
        callback.before_step(step)
        for batch in of_step:
            callback.after_forward(micro_batch_of(batch, step=step), Loss({}))
        metrics = callback.metrics(step + 1, callback.row_numbers(step + 1))
    return warnings, metrics


def test_the_metrics_are_those_of_the_step_over_its_micro_batches():
    _, metrics = _warnings([[_batch(5, keep=0.0)], [_batch(3), _batch(4, first=3)]])
    assert metrics == {"data/predicted_share": 70 / (7 * 64), "data/samples_without_predictions": 0}
    _, metrics = _warnings([[_batch(3, keep=0.0)]])
    assert metrics == {"data/predicted_share": 10 / (3 * 64), "data/samples_without_predictions": 2}


def test_a_run_warns_once_of_a_share_that_is_not_meant():
    half = [[_batch(SAMPLES // 2, first=first, keep=0.7)] for first in (0, SAMPLES // 2)]
    warnings, _ = _warnings(half * 2)
    assert len(warnings) == 1
    assert "480 samples are predicted, where 12.0% to 18.0% should be" in warnings[0]


def test_a_run_warns_of_samples_without_predictions_at_its_end_if_there_were_few():
    batches = [[_batch(40)], [_batch(1), _batch(2, first=50, keep=0.0)]]
    assert _warnings(batches)[0] == []
    (warning,) = _warnings(batches, is_last=True)[0]
    assert "1 samples predict nothing" in warning


def test_a_run_does_not_warn_of_what_is_meant():
    assert _warnings([[_batch(SAMPLES)]])[0] == []
    assert _warnings([[]], is_last=True)[0] == []


def test_limits_follow_what_is_asked_for():
    assert MaskedLM(seq_len=512).predicted_share == pytest.approx((0.12, 0.18))
    assert MaskedLM(seq_len=512, max_predictions=20).predicted_share == pytest.approx((0.8 * 20 / 512, 0.18))
    assert PermutationLM().predicted_share == pytest.approx((0.8 * 82 / 512, 1.2 * 85 / 512))
    assert CausalLM(seq_len=16).predicted_share is None
