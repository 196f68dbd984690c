"""Runs and checkpoints as arguments of a suite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from imported_runs import make_run

from launcher.suite.subjects import find_subjects
from xlpretrain.checkpoint.files import checkpoint_name
from xlpretrain.checkpoint.reader import fingerprint
from xlpretrain.run_dir.layout import RunDir


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A folder with a run of one checkpoint, `one`, and one whose newer checkpoint is damaged, `more`."""
    folder = tmp_path_factory.mktemp("runs")
    one = make_run(folder, tiny_dataset, {"type": "albert"}, name="one")
    shutil.copytree(one.path, folder / "more")
    more = RunDir(folder / "more")
    newer = more.checkpoints / checkpoint_name(9)
    newer.mkdir()
    (newer / "manifest.json").write_text("{}")
    return folder


def test_a_run_stands_for_its_newest_intact_checkpoint(runs: Path):
    (one, more), problems = find_subjects([str(runs / "one"), str(runs / "more")])
    assert (one.label, more.label, problems) == ("one@0", "more@0", [])
    assert one.fingerprint == fingerprint(one.checkpoint) == fingerprint(one.path)
    assert find_subjects([str(runs / "one@0"), str(one.checkpoint), f"{runs}/one@all"]) == ([one], [])


def test_random_weights_are_a_subject_without_a_checkpoint(runs: Path):
    found, problems = find_subjects([str(runs / "one@random"), str(runs / "one@all")])
    assert ([subject.label for subject in found], problems) == (["one@random", "one@0"], [])
    assert found[0].checkpoint is None


def test_everything_that_is_missing_is_named(runs: Path, tmp_path: Path):
    arguments = [str(tmp_path / "no"), str(runs / "one@7"), str(runs / "more@9"), str(runs / "more@all")]
    found, problems = find_subjects(arguments)
    assert found == []
    text = dict(problems)
    assert "not a run folder" in text[arguments[0]]
    assert "no checkpoint of step 7; there are those of steps 0" in text[arguments[1]]
    assert "damaged checkpoint" in text[arguments[2]] and "damaged checkpoint" in text[arguments[3]]


def test_two_runs_of_one_name_are_refused(runs: Path, tiny_dataset: Path, tmp_path: Path):
    other = make_run(tmp_path, tiny_dataset, {"type": "bert"}, name="one")
    _, problems = find_subjects([str(runs / "one"), str(other.path)])
    assert problems == [(str(other.path), f"has the same name as {runs / 'one'}; rename one of the run folders")]
