"""Slow ranks: the score, and one that a run names."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import commands
import plugins
import pytest
from callback_runs import completed, make_context
from repository import ROOT

from xlpretrain import distributed
from xlpretrain.train.callbacks.performance import stragglers
from xlpretrain.train.callbacks.performance.stragglers import RankTimes, Stragglers, slowest


def times(*seconds: float, error_s: float = 0.0, step_s: float = 1.0) -> list[RankTimes]:
    """Ranks that work so long and wait for the rest of the step."""
    return [RankTimes(work_s, error_s, step_s - work_s) for work_s in seconds]


def test_the_rank_that_works_longest_is_late():
    found = slowest(times(0.6, 0.9, 0.5))
    assert (found.rank, found.is_late) == (1, True)
    assert found.late_s == pytest.approx(0.9 - 0.55), "than the median of the others"
    assert slowest(times(0.6, 0.9)).rank == 1, "of two ranks as well"


def test_a_small_part_of_a_step_makes_nobody_late():
    assert not slowest(times(0.50, 0.55, 0.50)).is_late
    assert slowest(times(0.50, 0.65, 0.50)).is_late


def test_what_noise_explains_makes_nobody_late():
    assert not slowest(times(0.5, 0.8, 0.5, error_s=0.1)).is_late
    assert slowest(times(0.5, 0.8, 0.5, error_s=0.05)).is_late


def test_a_late_rank_stays_so_until_it_has_caught_up_by_half():
    nearly = times(0.50, 0.57, 0.50)
    assert not slowest(nearly).is_late
    assert slowest(nearly, named=1).is_late
    assert not slowest(nearly, named=0).is_late
    assert not slowest(times(0.50, 0.52, 0.50), named=1).is_late


def test_one_slow_step_of_twenty_changes_neither_the_median_nor_its_error():
    usual = [(1.0 + 0.001 * number, 0.1) for number in range(20)]
    slow = RankTimes.of([*usual[:-1], (60.0, 0.1)])
    assert slow.work_s == pytest.approx(RankTimes.of(usual).work_s, rel=1e-2)
    assert slow.error_s == pytest.approx(RankTimes.of(usual).error_s, rel=0.3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The time, and the time waited, as the test sets them."""
    now = {"s": 0.0, "waited_s": 0.0}
    monkeypatch.setattr(stragglers.time, "perf_counter", lambda: now["s"])
    monkeypatch.setattr(distributed, "waited_s", lambda: now["waited_s"])
    return now


def test_waits_rows_and_evaluations_are_no_work(clock: dict[str, float]):
    told: list[str] = []
    callback = Stragglers(make_context(), ["here"], show=told.append)
    for step in range(stragglers.FEWEST):
        assert callback.row_numbers(step) == [0.0, 0.0, 0.0], "too few steps"
        callback.before_fetch(step)
        clock["s"] += 3.0
        clock["waited_s"] += 1.0
        callback.after_step(completed(step + 1))
        clock["s"] += 100.0
        clock["waited_s"] += 50.0
    assert callback.row_numbers(10) == [2.0, 0.0, 1.0]


def test_it_is_told_once_when_a_rank_falls_behind_and_once_when_it_has_caught_up():
    printed: list[str] = []
    shown: list[str] = []
    callback = Stragglers(make_context(print=printed.append), ["node1", "node2", "node3"], show=shown.append)
    healthy, slow = [0.5, 0.0, 0.1] * 3, [0.5, 0.0, 0.5, 0.9, 0.0, 0.1, 0.5, 0.0, 0.5]
    assert callback.metrics(10, [0.0] * 9) == {}
    assert callback.metrics(20, healthy)["time/straggler"] == -1
    for step in (30, 40):
        assert callback.metrics(step, slow) == {
            "time/wait_max_s": 0.5,
            "time/late_max_s": pytest.approx(0.4),
            "time/straggler": 1,
        }
    assert callback.metrics(50, healthy)["time/straggler"] == -1
    assert printed == [
        "step 30: rank 1 on node2 is late: the others wait for it, 0.4 s in a step",
        "step 50: rank 1 on node2 is no longer late",
    ]
    assert shown == ["rank 1 on node2: 0.4 s per step later than the others"] * 2 + [""]


SLEEPING = """
import time
from typing import Literal

from xlpretrain.train.callbacks.base import Callback, CallbackConfig


class SleepingConfig(CallbackConfig):
    type: Literal["sleeping"] = "sleeping"
    event: str
    seconds: float

    def build(self, context):
        return Sleeping(self) if context.rank == 1 else Callback()


class Sleeping(Callback):
    def __init__(self, config):
        self.config = config

    def before_step(self, step):
        if self.config.event == "before_step":
            time.sleep(self.config.seconds)

    def after_step(self, done):
        if self.config.event == "after_step":
            time.sleep(self.config.seconds)
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("engine", "event"),
    [
        ({"type": "plain", "precision": "fp32"}, "before_step"),
        ({"type": "plain", "precision": "fp32"}, "after_step"),
        ({"zero_stage": 1}, "before_step"),
        ({"zero_stage": 3}, "before_step"),
    ],
    ids=["plain", "plain, after its update", "ZeRO-1", "ZeRO-3"],
)
def test_a_rank_that_sleeps_is_named_within_20_steps_and_without_it_none_is(
    engine: dict, event: str, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plugins.install(tmp_path, "sleeping", {"sleeping.py": SLEEPING}, {"callback.sleeping": "sleeping:SleepingConfig"})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        tiny_dataset,
        engine=engine,
        global_batch_size=6,
        max_steps=20,
        eval={"every_steps": 100, "max_tokens": 500, "seq_len": 1024},
        wandb={"mode": "disabled"},
    )
    commands.run("train", config, "name=healthy", "--nproc", 3)
    healthy = commands.read_metrics(tmp_path / "runs" / "healthy")
    assert {row["time/straggler"] for row in healthy[stragglers.FEWEST - 1 :]} == {-1}
    # More than the noise of a machine that is busy with other tests.
    seconds = 2 * statistics.median(row["time/step_s"] for row in healthy)
    callbacks = [{"type": "sleeping", "event": event, "seconds": round(seconds, 3)}]
    out, _ = commands.run("train", config, "name=slow", f"callbacks={json.dumps(callbacks)}", "--nproc", 3)
    slow = commands.read_metrics(tmp_path / "runs" / "slow")
    assert slow[-1]["time/straggler"] == 1
    assert slow[-1]["time/late_max_s"] > seconds / 2
    assert out.count(f"rank 1 on {os.uname().nodename} is late") == 1
    assert f"rank 1 on {os.uname().nodename}" in commands.run("status", tmp_path / "runs" / "slow")[0]
    assert commands.curve(tmp_path / "runs" / "slow") == commands.curve(tmp_path / "runs" / "healthy")
