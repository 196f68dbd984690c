"""How starts end and whether there is another, by the one module that `train`, `submit`, `resume` and jobs ask."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.slurm import history
from launcher.slurm.records import AttemptEnd, AttemptStart
from xlpretrain.checkpoint.files import MANIFEST, checkpoint_name, quarantine
from xlpretrain.errors import ConfigError
from xlpretrain.run_dir import outcome
from xlpretrain.run_dir.layout import RunDir, Status


@pytest.mark.parametrize(
    ("status", "more", "ended", "code", "go_on"),
    [
        (Status("finished", "finished"), {}, "finished", 0, False),
        (Status("stopped", "signal"), {}, "stopped", 75, True),
        (Status("stopped", "time"), {}, "stopped", 75, True),
        (Status("stopped", "user"), {}, "stopped", 75, False),
        (Status("stopped", "signal"), {"stop_file": True}, "stopped", 75, False),
        (Status("failed", "error", message="why"), {}, "failed", 2, False),
        (None, {"exit_code": 2}, "failed", 2, False),
        (Status("running"), {}, "crashed", 1, True),
        (None, {}, "crashed", 1, True),
        (Status("running"), {"stop_file": True}, "failed", 1, False),
        (Status("finished"), {"lost": True}, "fenced", 76, False),
        # status.json could not be written: the ranks' exit code tells.
        (Status("running"), {"exit_code": 0}, "finished", 0, False),
        (None, {"exit_code": 75}, "stopped", 75, True),
        (Status("running"), {"exit_code": 75, "stop_file": True}, "stopped", 75, False),
        (Status("stopped", "signal"), {"exit_code": -9}, "stopped", 75, True),
        (Status("running"), {"exit_code": -9}, "crashed", 1, True),
    ],
    ids=str,
)
def test_how_a_start_ended(status: Status | None, more: dict[str, object], ended: str, code: int, go_on: bool) -> None:
    given = {"exit_code": None, "lost": False, "stop_file": False, "last_words": "words", **more}
    found = outcome.classify_exit(status, **given)  # type: ignore[arg-type]
    assert (found.outcome, found.code, found.should_restart) == (ended, code, go_on)


@pytest.mark.parametrize(
    ("status", "patience_then", "now", "message"),
    [
        (None, None, {}, None),
        (Status("stopped", "signal", step=30, max_steps=60), None, {}, None),
        (Status("finished", "finished", step=60, max_steps=60), None, {}, "60 steps"),
        (Status("finished", "finished", step=60, max_steps=60), None, {"max_steps": 70}, None),
        (Status("finished", "finished", step=60, max_steps=60), None, {"max_steps": 50}, "raise max_steps"),
        (Status("finished", "finished", step=60, max_steps=60), 2, {"patience": 2, "max_steps": 70}, None),
        (Status("finished", "finished", step=30, max_steps=60), 2, {"patience": 2}, "raise stop.patience"),
        (Status("finished", "finished", step=30, max_steps=60), 2, {"patience": 2, "max_steps": 90}, "30 steps"),
        (Status("finished", "finished", step=30, max_steps=60), 2, {"patience": 1}, "30 steps"),
        (Status("finished", "finished", step=30, max_steps=60), 2, {"patience": 3}, None),
        (Status("finished", "finished", step=30, max_steps=60), 2, {"patience": 2, "eval_every_steps": 20}, None),
        (Status("finished", "finished", step=30, max_steps=60), 2, {"patience": None}, None),
        (Status("finished", "finished", step=0, max_steps=1), None, {}, None),
    ],
    ids=str,
)
def test_a_finished_run_is_known_by_its_steps_or_by_its_patience(
    tmp_path: Path, status: Status | None, patience_then: int | None, now: dict[str, int | None], message: str | None
) -> None:
    run = RunDir(tmp_path)
    patience = "null" if patience_then is None else patience_then
    run.create(config=f"stop: {{patience: {patience}}}\neval: {{every_steps: 10}}\n", provenance={})
    if status is not None:
        run.write_status(status)
    settings = {"max_steps": 60, "patience": None, "eval_every_steps": 10, **now}
    told = outcome.nothing_left(run, **settings)  # type: ignore[arg-type]
    assert (told is None) == (message is None), told
    assert message is None or message in str(told)


def save(run: RunDir, step: int, at: int) -> None:
    """A checkpoint, as far as its name and its time go."""
    folder = run.checkpoints / checkpoint_name(step)
    folder.mkdir(parents=True)
    (folder / MANIFEST).touch()
    os.utime(folder / MANIFEST, ns=(at, at))


@pytest.mark.parametrize(("written", "progress"), [([], False), ([30], True), ([40], True), ([60], True)], ids=str)
def test_after_a_damaged_checkpoint_what_is_written_counts_and_going_back_does_not(
    tmp_path: Path, written: list[int], progress: bool
) -> None:
    run = RunDir(tmp_path)
    save(run, 20, at=1000)
    save(run, 40, at=2000)
    before, began = outcome.saved(run), outcome.newest_step(run)
    quarantine(run.checkpoints / checkpoint_name(40), "truncated")
    for step in written:
        save(run, step, at=3000)
    assert outcome.made_progress(run, before=before) == progress
    # A job writes it down, so that the next one counts alike.
    start = AttemptStart("7", 0, 0.0, ("n1",), 1, began)
    end = AttemptEnd(1.0, "requeued", 1, outcome.newest_step(run), progress=progress)
    assert history.attempts_without_progress([start, end]) == (0 if progress else 1)


def test_the_newest_step_is_that_of_the_last_whole_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert outcome.newest_step(run) == 0
    for name in ("step-00000100", "step-00000020", ".tmp-1-step-00000300", "step-00000400.old"):
        (run.checkpoints / name).mkdir(parents=True)
    assert outcome.newest_step(run) == 100


def test_restarts_end_by_their_number_and_by_starts_in_vain() -> None:
    given = {"limit": 3, "limit_name": "--max-restarts"}
    assert outcome.stop_reason(restarts=2, attempts_without_progress=1, **given) is None  # type: ignore[arg-type]
    assert "restarted 3 times, the limit set by --max-restarts" in str(
        outcome.stop_reason(restarts=3, attempts_without_progress=0, **given)
    )  # type: ignore[arg-type]
    assert "2 consecutive attempts wrote no" in str(
        outcome.stop_reason(restarts=1, attempts_without_progress=2, **given)
    )  # type: ignore[arg-type]


def test_ending_a_run_costs_what_came_after_its_newest_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir(parents=True)
    run.write_status(Status("running", step=47))
    assert outcome.cost_of_ending(run) == "all 47 steps (there is no checkpoint yet)"
    save(run, 40, at=1000)
    assert outcome.cost_of_ending(run) == "the 7 steps since the checkpoint of step 40"


def test_advice_names_the_checkpoint_that_another_attempt_begins_with_or_says_there_is_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert outcome.how_to_resume(run) == "nothing was written yet: rerun the same command"
    run.create(config="", provenance={})
    command = f"`xlpretrain resume {tmp_path}`"
    assert outcome.how_to_resume(run) == f"{command} starts over: there is no checkpoint yet"
    save(run, 40, at=1000)
    assert outcome.how_to_resume(run) == f"{command} resumes from the checkpoint of step 40"


def test_a_run_that_its_user_stopped_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    outcome.refuse_if_stopped(run)
    run.stop_file.touch()
    with pytest.raises(ConfigError, match="stopped by the user; `xlpretrain resume"):
        outcome.refuse_if_stopped(run)


def test_only_a_parent_of_ours_hears_that_a_rank_stopped_early() -> None:
    assert outcome.code_of_rank(75, parent_knows=True) == 75
    assert outcome.code_of_rank(75, parent_knows=False) == 0
    assert outcome.code_of_rank(2, parent_knows=False) == 2
