"""Requests of callbacks: saves, ends, rollbacks and sections; and the end of a run by their errors.

Modules: agreement.py, saving.py, rollback.py, log_row.py, evaluation.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import plugins
import pytest
from repository import ROOT

from xlpretrain.__main__ import main

ACTING = """
from typing import Any, Literal

from xlpretrain.errors import TrainingError
from xlpretrain.train.callbacks.base import Callback, CallbackConfig, CallbackContext, RollBack


class ActingConfig(CallbackConfig):
    type: Literal["acting"] = "acting"
    act: str = ""
    at: int = 3
    rank: int = 0
    limit_s: float | None = None

    def build(self, context: CallbackContext):
        return None if self.act == "nothing" else Acting(self, context)


class Acting(Callback):
    num_numbers = 1

    def __init__(self, config, context):
        self.config, self.context = config, context
        self.section_timeout_s = config.limit_s
        self.rolled_back = False

    def numbers(self, step):
        return [1.0]

    def agreed(self, step, sums):
        assert sums == [self.context.world_size]
        act = self.config.act if step == self.config.at else ""
        if act == "roll back" and not self.rolled_back:
            return RollBack("the callback says so", skip_after=1)
        return act if act in ("save", "stop", "finish") else None

    def after_rollback(self, saved):
        self.rolled_back = True

    def after_step(self, done):
        if done.step == self.config.at and self.context.rank == self.config.rank:
            if self.config.act == "error":
                raise TrainingError("the webhook is gone")
            if self.config.act == "crash":
                raise ZeroDivisionError("division by zero")

    def is_due(self, step):
        return self.config.act.startswith("section") and step == self.config.at

    def section(self, pause):
        pause(None)
        if self.config.act == "section error" and self.context.rank == self.config.rank:
            raise TrainingError("the benchmark is gone")
        return {"acting/section": self.context.world_size}
"""


@pytest.fixture
def config(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run of six steps, where the package with the acting callback is installed."""
    plugins.install(tmp_path, "acting", {"acting.py": ACTING}, {"callback.acting": "acting:ActingConfig"})
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread
    with plugins.on_path(tmp_path, monkeypatch):
        yield commands.write_config(
            tmp_path / "tiny.yaml",
            tiny_dataset,
            engine={"type": "plain", "precision": "fp32"},
            max_steps=6,
            schedule={"type": "cosine", "warmup_steps": 1, "total_steps": 6},
            checkpoint={"every_steps": 2, "keep": 9},
            eval={"every_steps": 3, "max_tokens": 500},
            wandb={"mode": "disabled"},
        )


def train(config: Path, *callbacks: dict[str, Any], name: str = "run", max_steps: int = 6) -> int:
    listed = [{"type": "acting", **callback} for callback in callbacks]
    return main([str(config), f"name={name}", f"max_steps={max_steps}", f"callbacks={json.dumps(listed)}"])


def status(config: Path) -> tuple[str, str, int]:
    found = json.loads((config.parent / "runs" / "run" / "status.json").read_text())
    return found["state"], found["reason"], found["step"]


def saved_steps(config: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (config.parent / "runs" / "run" / "checkpoints").glob("step-*"))


@pytest.mark.full
def test_a_save_is_made_at_its_step_and_the_run_has_the_bits_of_one_without(config: Path):
    assert train(config, name="plain") == 0
    assert train(config, {"act": "save", "at": 3}, {"act": "nothing"}) == 0
    assert 3 in saved_steps(config)
    runs = config.parent / "runs"
    assert commands.curve(runs / "run") == commands.curve(runs / "plain")


def test_an_end_and_a_stop_are_different_outcomes(config: Path):
    assert train(config, {"act": "stop", "at": 1}) == 75
    assert status(config) == ("stopped", "signal", 1)
    assert train(config, {"act": "finish", "at": 4}) == 0
    assert status(config) == ("finished", "finished", 4)
    assert {1, 4} <= {*saved_steps(config)}


def test_a_rollback_goes_on_without_the_data_around_the_step(config: Path, capsys: pytest.CaptureFixture[str]):
    assert train(config, max_steps=2) == 0
    assert train(config, {"act": "roll back", "at": 3}) == 0
    assert (
        "step 3: the callback says so; rolled back to step 2, skipping the data of steps 2 to 3"
        in capsys.readouterr().out
    )
    rows = commands.read_metrics(config.parent / "runs" / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (rows[-1]["events/rollbacks"], rows[-1]["events/skipped_steps"]) == (1, 2)


def test_a_section_adds_to_the_row_of_its_step_beside_the_evaluation(config: Path):
    assert train(config, {"act": "section", "at": 3}, {"act": "section", "at": 4}) == 0
    rows = {row["step"]: row for row in commands.read_metrics(config.parent / "runs" / "run")}
    assert {step for step, row in rows.items() if "acting/section" in row} == {3, 4}
    assert {step for step, row in rows.items() if "valid/loss" in row} == {3, 6}


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ({"act": "error", "at": 2}, "the webhook is gone"),
        ({"act": "error", "at": 6}, "the webhook is gone"),
        ({"act": "section error"}, "the benchmark is gone"),
        ({"act": "section", "limit_s": 1e6}, "its section may take 1e+06 s between two pauses"),
    ],
    ids=["in a step", "in the last step", "in a section", "of its config"],
)
def test_an_error_of_the_user_ends_the_run_with_its_message(
    config: Path, callback: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
):
    assert train(config, callback) == 2
    assert capsys.readouterr().err.count(message) == 1


def test_any_other_error_is_a_crash_that_names_the_callback(config: Path):
    with pytest.raises(ZeroDivisionError) as caught:
        train(config, {"act": "crash"})
    assert caught.value.__notes__ == ["in the callback 'acting', in its method after_step"]


@pytest.mark.full
@pytest.mark.parametrize("act", ["error", "section error"])
def test_an_error_of_one_rank_ends_both(config: Path, act: str):
    callbacks = json.dumps([{"type": "acting", "act": act, "rank": 1}])
    assert " is gone" in commands.refused("train", config, f"callbacks={callbacks}", "--nproc", 2)
