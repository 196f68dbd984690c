"""Suites: their files, mistakes in them, and those that come with xlpretrain."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launcher.suite.definition import FinetuneTask, PairsTask, builtin_suites, load_suite
from xlpretrain.errors import ConfigError


def _write(path: Path, *tasks: dict, **keys) -> str:
    path.write_text(yaml.safe_dump({**keys, "tasks": list(tasks)}))
    return str(path)


def test_every_mistake_of_a_file_is_in_one_report(tmp_path: Path):
    files = {"train": "a.csv", "valid": "b.csv"}
    suite = _write(
        tmp_path / "s.yaml",
        {"name": "a", "type": "clasify", **files},
        {"name": "b", "type": "tag", "train": "a", "vald": "b"},
        {"name": "c", "type": "pairs"},
    )
    with pytest.raises(ConfigError) as raised:
        load_suite(suite)
    text = str(raised.value)
    assert "tasks.0.type   must be one of classify, " in text and 'pairs, got "clasify"' in text
    assert "did you mean classify?" in text and "did you mean valid?" in text
    assert "tasks.2.data   required key is missing" in text
    suite = _write(
        tmp_path / "s.yaml",
        {"name": "a", **files, "metrics": ["bleu"], "overrides": ["seed=3"]},
        {"name": "a", "type": "tag", **files, "columns": ["x", "y"]},
        {"name": "b-seed-1", "type": "pairs", "data": "x"},
        {"name": "d", **files, "published": [{"model": "m", "value": 1.0, "part": "p", "source": "s"}]},
    )
    with pytest.raises(ConfigError) as raised:
        load_suite(suite)
    for problem in (
        "tasks.0.metrics    a task of type classify has the metrics accuracy, macro_f1, matthews, roc_auc, f1",
        "tasks.0.overrides  seed is set by the suite",
        "tasks.1.type       format, columns and {column} are for classify and regress, got tag",
        "tasks.1.name       a is there twice",
        "tasks.2.name       must not end like a seed's folder, got b-seed-1",
        "tasks.3.published  no such part: p; expected one of none",
    ):
        assert problem in str(raised.value)


def test_paths_are_relative_to_the_folder_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    task = {"name": "a", "train": "x/a.csv", "valid": "b.csv", "parts": {"more": "c.csv"}}
    suite = _write(tmp_path / "s.yaml", task, {"name": "p", "type": "pairs", "data": "pairs"})
    monkeypatch.chdir(tmp_path)
    here, there = load_suite(suite), load_suite(suite, data=Path("/tmp"))
    assert here.tasks[0].files() == {
        "train": tmp_path / "x/a.csv",
        "valid": tmp_path / "b.csv",
        "parts.more": tmp_path / "c.csv",
    }
    assert there.tasks[1].files() == {"data": Path("/tmp/pairs")}


def test_overrides_of_the_suite_of_a_task_and_of_the_command_come_in_this_order(tmp_path: Path):
    task = {"name": "a", "train": "a.csv", "valid": "b.csv", "overrides": ["max_steps=2"], "num_seeds": 2}
    suite = _write(tmp_path / "s.yaml", task, {"name": "p", "type": "pairs", "data": "x"}, overrides=["max_steps=1"])
    first, pairs = load_suite(suite, overrides=["max_steps=3"]).tasks
    assert isinstance(first, FinetuneTask) and first.overrides == ("max_steps=1", "max_steps=2", "max_steps=3")
    assert first.seeds(3) == (1, 2) and pairs.seeds(3) == (None,)


def test_tasks_can_be_chosen_by_name(tmp_path: Path):
    assert [task.name for task in load_suite("glue", data=tmp_path, only=["rte", "cola"]).tasks] == ["cola", "rte"]
    with pytest.raises(ConfigError, match=r"--only: .*glue.yaml has no task sst; it has cola, sst2"):
        load_suite("glue", data=tmp_path, only=["sst"])


def test_a_suite_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file, and no built-in suite; those are babylm, blimp, glue"):
        load_suite("superglue")
    with pytest.raises(ConfigError, match="--suite glue needs the folder of its files"):
        load_suite("glue")
    with pytest.raises(ConfigError, match="no such folder"):
        load_suite("glue", data=tmp_path / "nowhere")


@pytest.mark.parametrize("name", builtin_suites())
def test_built_in_suites_are_valid_and_their_published_figures_have_a_row(name: str, tmp_path: Path):
    config = load_suite(name, data=tmp_path)
    for task in config.tasks:
        for figure in task.published:
            assert (figure.metric or task.reported[0]) in task.reported and 0 < figure.value < 100
    assert any(isinstance(task, PairsTask) for task in config.tasks) == (name != "glue")
