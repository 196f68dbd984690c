"""Steps whose loss or gradient is not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
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


def test_a_devices_steps_are_counted_a_step_late_but_at_logged_steps_and_saves():
    said: list[str] = []
    context = make_context(stop={"max_nonfinite_steps": 2}, log={"every_steps": 5}, print=said.append)
    callback = NonFinite(replace(context, device=torch.device("meta")))  # the numbers are on the CPU all the same
    for step, grad_norm in enumerate([1.0, math.nan, 1.0, 1.0, math.nan], 1):
        callback.after_step(completed(step, grad_norm=grad_norm))
        callback.after_row(step, {})
        assert len(said) == [0, 0, 1, 1, 2][step - 1]
    assert callback.metrics(5, ()) == {"events/skipped_updates": 2}
    callback.after_step(completed(6, grad_norm=math.nan))
    callback.after_row(6, {})
    callback.after_step(completed(7, grad_norm=1.0))
    with pytest.raises(TrainingError, match="2 steps in a row, up to step 6,"):
        callback.after_row(7, {})
    assert callback.state() == {"skipped_updates": 3, "nonfinite_in_a_row": 0}
