"""Changes of a suite between two commands: those that would mix results are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.suite.definition import FinetuneTask, PairsTask
from launcher.suite.jobs import Job
from launcher.suite.record import Record
from launcher.suite.subjects import Subject
from xlpretrain.errors import LaunchError


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A finished job."""
    for name in ("train", "valid", "more"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},0\n")
    task = FinetuneTask(
        name="a", train=tmp_path / "train.csv", valid=tmp_path / "valid.csv", parts={"more": tmp_path / "more.csv"}
    )
    made = Job(tmp_path / "out", Subject(Path("runs/r"), 5, "abc"), task, 1)
    made.place.mkdir(parents=True)
    made.write({"": {"accuracy": 0.5}})
    return made


def _problems(before: Record, job: Job, subject: Subject | None = None, **changes) -> list[tuple[str, str]]:
    task = job.task.model_copy(update=changes)
    now = replace(job, task=task, subject=subject or job.subject)
    return list(before.problems(before.extended([task], [now.subject]), [now]))


def test_what_changes_results_is_named_with_its_former_value(job: Job):
    before = Record().extended([job.task], [job.subject])
    assert _problems(before, job) == []
    ((key, text),) = _problems(before, job, overrides=("max_steps=5",))
    assert key == "a.overrides" and "was [], now [max_steps=5]" in text and "another name" in text
    ((key, _),) = _problems(before, job, label="kind")
    assert key == "a.label"
    ((key, text),) = _problems(before, job, parts={})
    assert key == "a.parts" and "was [more], now []" in text
    ((key, text),) = _problems(before, job, Subject(Path("runs/r"), 5, "other"))
    assert key == "r@5" and "is not the checkpoint that the results are of" in text


def test_changed_files_are_named_and_moved_ones_are_not(job: Job, tmp_path: Path):
    before = Record().extended([job.task], [job.subject])
    moved = (tmp_path / "valid.csv").rename(tmp_path / "elsewhere.csv")
    assert _problems(before, job, valid=moved) == []
    (tmp_path / "train.csv").write_text("text,label\nother,0\n")
    ((key, text),) = _problems(before, job, valid=moved)
    assert key == "a.train" and "the content of the file has changed" in text


def test_what_is_only_shown_may_change_and_so_may_a_task_that_has_not_begun(job: Job):
    before = Record().extended([job.task], [job.subject])
    assert _problems(before, job, metrics=("accuracy",), num_seeds=9) == []
    unbegun = replace(job, seed=2)
    assert _problems(before, unbegun, overrides=("max_steps=5",)) == []


def test_folders_are_compared_by_the_names_and_contents_of_their_files(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("1\n")
    task = PairsTask(name="p", data=tmp_path / "data")
    job = Job(tmp_path / "out", Subject(Path("r"), 0, "x"), task, None)
    job.place.mkdir(parents=True)
    before = Record().extended([task], [job.subject])
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "b.jsonl")
    ((key, _),) = before.problems(before.extended([task], [job.subject]), [job])
    assert key == "p.data"


def test_a_record_is_read_as_written_and_other_folders_are_refused(job: Job, tmp_path: Path):
    record = Record().extended([job.task], [job.subject])
    record.write(job.folder)
    read = Record.read(job.folder)
    assert read.tasks == record.tasks and read.subjects.keys() == {"r@5"}
    assert read.subjects["r@5"].fingerprint == "abc"
    assert Record.read(tmp_path / "nowhere") == Record()
    with pytest.raises(LaunchError, match="has files, but no suite"):
        Record.read(tmp_path)
    (job.folder / "suite.json").write_text("{")
    with pytest.raises(LaunchError, match="cannot be read"):
        Record.read(job.folder)
