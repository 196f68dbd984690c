import time

import pytest

from xlpretrain.run_dir.goodput import Goodput, describe


def test_every_second_is_charged_to_something(monkeypatch: pytest.MonkeyPatch):
    clock = iter([101.0, 103.0, 107.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    goodput = Goodput(_mark=100.0)
    for on in ("data_wait_s", "step_s", "save_s"):
        goodput.add_time(on)
    assert (goodput.data_wait_s, goodput.step_s, goodput.save_s, goodput.total_s) == (1, 2, 4, 7)


def test_a_crash_makes_what_it_undid_a_loss_and_counts_it_once():
    kept = Goodput(step_s=50, data_wait_s=2, save_s=1, eval_s=3).metrics()
    last = Goodput(step_s=70, data_wait_s=4, save_s=2, eval_s=3).metrics()
    first = Goodput.resumed(last, kept, steps_lost=20, away_s=30)
    assert (first.step_s, first.lost_s, first.restart_s) == (50, 23, 30)
    assert (first.steps_redone, first.restarts) == (20, 1)
    again = Goodput.resumed(first.metrics(), kept, steps_lost=0, away_s=5)  # it died before its first step
    assert (again.step_s, again.lost_s, again.restart_s) == (50, 23, 35)
    assert (again.steps_redone, again.restarts) == (20, 2)


def test_a_run_begun_before_there_were_accounts_has_some_from_now_on():
    goodput = Goodput.resumed({}, {"goodput/step_s": None}, steps_lost=0, away_s=1)
    assert goodput.total_s == 1


def test_one_line_says_where_the_time_went():
    told = describe(Goodput(step_s=90, data_wait_s=1, save_s=2, eval_s=3, lost_s=3, restart_s=1, restarts=2).metrics())
    assert told.startswith("goodput 90.0% of 100 s in steps; 1.0% waiting for data, 2.0% blocked by saves")
    assert "(2 restarts)" in told and "(0 steps redone)" in told
    assert "(1 restart)" in describe(Goodput(restarts=1).metrics())
