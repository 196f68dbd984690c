"""Samples that are left out: counted once their step is done, and reported once."""

from __future__ import annotations

from callback_runs import make_context

from xlpretrain.train.callbacks.damaged_samples import DamagedSamples


def test_they_are_counted_with_their_step_and_each_block_is_reported_once():
    printed: list[str] = []
    damage = {3: ["block 1 of a.tar", "block 1 of a.tar"], 4: ["block 1 of a.tar"]}
    callback = DamagedSamples(make_context(print=printed.append), damage)
    assert callback.numbers(3) == [2]
    callback.agreed(3, [2.0])
    assert callback.state() == {"damaged_rows": 0}, "the run may stop before the step"
    for step in (3, 4, 5):
        callback.agreed(step, callback.numbers(step))
        callback.before_step(step)
    assert callback.metrics(6, ()) == {"events/damaged_rows": 3}
    assert printed == ["skipping samples of a damaged block: block 1 of a.tar"]
    assert damage == {}


def test_a_resume_goes_on_counting():
    callback = DamagedSamples(make_context(), {7: ["block 2 of a.tar"]})
    callback.load_state({"damaged_rows": 5})
    callback.agreed(7, callback.numbers(7))
    callback.before_step(7)
    assert callback.state() == {"damaged_rows": 6}
