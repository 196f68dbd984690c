"""The best evaluation: what counts as one, its checkpoint, and an end without improvement."""

from __future__ import annotations

import json
import math

import pytest
from callback_runs import make_context

from xlpretrain.train.callbacks.best_checkpoint import BestCheckpoint


def evaluated(losses: dict[int, float], **sections: dict) -> BestCheckpoint:
    callback = BestCheckpoint(make_context(**sections))
    for step, loss in losses.items():
        callback.after_evaluation(step, {"valid/loss": loss, "valid/lm_accuracy": loss / 10})
    return callback


@pytest.mark.parametrize(("best", "expected"), [("loss", (20, 2.0)), ("accuracy", (10, 0.3))])
def test_the_first_of_the_best_evaluations_is_remembered(best: str, expected: tuple[int, float]):
    callback = evaluated({10: 3.0, 20: 2.0, 30: 2.0}, eval={"best": best})
    assert (callback.best_step, callback.best_value) == pytest.approx(expected)


def test_a_tie_goes_to_the_lower_loss_and_an_undefined_metric_is_the_worst():
    callback = BestCheckpoint(make_context(eval={"best": "accuracy", "every_steps": 10}, stop={"patience": 2}))
    rows = [(10, None, 3.0), (20, None, 2.9), (30, 0.0, 3.5), (40, 0.0, 3.5), (50, 0.0, 2.0), (60, 0.1, 4.0)]
    best = []
    for step, accuracy, loss in rows:
        callback.after_evaluation(step, {"valid/loss": loss, "valid/lm_accuracy": accuracy})
        best.append(callback.best_step)
        assert callback.agreed(step, ()) is None
    assert best == [10, 20, 30, 30, 50, 60]
    callback.after_evaluation(70, {"valid/loss": 4.0, "valid/lm_accuracy": 0.1})
    callback.after_evaluation(80, {"valid/loss": math.nan, "valid/lm_accuracy": math.nan})
    assert callback.best_step == 60 and callback.agreed(80, ()) == "finish"


def test_a_tie_with_the_best_of_an_older_checkpoint_is_no_improvement():
    callback = BestCheckpoint(make_context(eval={"best": "accuracy"}))
    callback.load_state({"best_step": 10, "best_value": 0.5})
    callback.after_evaluation(20, {"valid/loss": 0.1, "valid/lm_accuracy": 0.5})
    assert callback.best_step == 10
    callback.after_evaluation(30, {"valid/loss": 0.1, "valid/lm_accuracy": 0.6})
    assert (callback.best_step, callback.state()["best_loss"]) == (30, 0.1)


def test_its_checkpoint_is_asked_for_at_its_step_alone():
    callback = evaluated({10: 3.0}, checkpoint={"keep_best": True})
    assert [callback.agreed(step, ()) for step in (10, 11)] == ["save", None]
    assert evaluated({10: 3.0}).agreed(10, ()) is None


def test_evaluations_without_improvement_finish_a_run():
    callback = evaluated({10: 3.0, 20: 4.0}, stop={"patience": 2}, eval={"every_steps": 10})
    assert [callback.agreed(step, ()) for step in (20, 29, 30)] == [None, None, "finish"]


def test_a_resume_compares_with_the_best_one_of_before():
    resumed = BestCheckpoint(make_context())
    resumed.load_state(json.loads(json.dumps(evaluated({10: 2.0}).state())))
    resumed.after_evaluation(20, {"valid/loss": 2.5})
    assert resumed.best_step == 10
