"""Steps whose loss or gradient is not finite."""

from __future__ import annotations

import math

import pytest
from callback_runs import completed, make_context

from xlpretrain.errors import TrainingError
from xlpretrain.train.callbacks.nonfinite import NonFinite


def after(*grad_norms: float) -> NonFinite:
    callback = NonFinite(make_context(stop={"max_nonfinite_steps": 2}))
    for step, grad_norm in enumerate(grad_norms, 1):
        callback.after_step(completed(step, grad_norm=grad_norm))
        callback.after_row(step, {})
    return callback


def test_they_are_counted_and_a_good_step_ends_a_row_of_them():
    assert after(math.nan, 1.0, math.inf).state() == {"skipped_updates": 2, "nonfinite_in_a_row": 1}
    assert after(math.nan, 1.0).metrics(2, ()) == {"events/skipped_updates": 1}


def test_too_many_in_a_row_are_an_error_also_over_a_resume():
    with pytest.raises(TrainingError, match="2 steps in a row, up to step 3,"):
        after(1.0, math.nan, math.nan)
    resumed = after()
    resumed.load_state(after(math.nan).state())
    resumed.after_step(completed(2, grad_norm=math.nan))
    with pytest.raises(TrainingError, match="up to step 2"):
        resumed.after_row(2, {})


def test_a_rollback_forgets_the_row_but_not_the_number():
    callback = after(math.nan)
    callback.after_rollback({"skipped_updates": 0, "nonfinite_in_a_row": 0})
    assert callback.state() == {"skipped_updates": 1, "nonfinite_in_a_row": 0}
