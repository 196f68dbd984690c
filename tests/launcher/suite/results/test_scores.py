"""Tables of scores: means, deviations, what is missing, files and plots.

Modules: report.py, curves.py.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.suite.definition import FinetuneTask, PairsTask, PublishedFigure, SuiteConfig
from launcher.suite.jobs import list_jobs
from launcher.suite.results.curves import curves_of
from launcher.suite.results.report import print_table, to_csv, to_markdown, write_report
from launcher.suite.results.scores import Row, Scores, collect
from launcher.suite.subjects import Subject

SUBJECTS = [Subject(Path(f"/runs/{run}"), step, run) for run, step in (("bert", 100), ("bert", 200), ("txl", 200))]
FIGURE = PublishedFigure(model="BERT", value=84.6, source="a paper | table 1")
TASKS = (
    FinetuneTask(
        name="nli",
        train=Path("a"),
        valid=Path("b"),
        parts={"mm": Path("c")},
        metrics=("accuracy",),
        published=(FIGURE,),
    ),
    FinetuneTask(name="qa", type="answer", train=Path("a"), valid=Path("b"), metrics=("f1", "exact_match")),
    PairsTask(name="pairs", data=Path("d")),
)


@pytest.fixture
def scores(tmp_path: Path) -> Scores:
    """Scores of two steps of a run, and of one with a failed and an unfinished job."""
    config = SuiteConfig(tasks=TASKS, num_seeds=2)
    jobs = list(list_jobs(config, SUBJECTS, tmp_path))
    for job in jobs:
        job.place.parent.mkdir(parents=True, exist_ok=True)
        if job.subject.run == "txl" and job.task.name != "pairs" and job.seed == 2:
            continue
        up = job.subject.step / 1000 + 0.02 * (job.seed or 0)
        match job.task.name:
            case "nli":
                job.write({"": {"accuracy": 0.5 + up, "f1": None}, "mm": {"accuracy": 0.4 + up}})
            case "qa":
                job.write({"": {"f1": 60 + 100 * up, "exact_match": None if job.subject.run == "txl" else 50.0}})
            case "pairs":
                job.write({"": {"accuracy": 0.75}, "island_effects": {"accuracy": 0.7}})
    return collect(config, jobs, ["txl@200/nli-seed-2"])


def test_means_deviations_and_what_is_missing(scores: Scores):
    show = {row: [scores.cells[row, label].show() for label in scores.labels] for row in scores.rows}
    assert show == {
        Row("nli", "", "accuracy"): ["63.00 ± 1.41", "73.00 ± 1.41", "72.00 (1 of 2, 1 failed)"],
        Row("nli", "mm", "accuracy"): ["53.00 ± 1.41", "63.00 ± 1.41", "62.00 (1 of 2, 1 failed)"],
        Row("qa", "", "f1"): ["73.00 ± 1.41", "83.00 ± 1.41", "82.00 (1 of 2)"],
        Row("qa", "", "exact_match"): ["50.00 ± 0.00", "50.00 ± 0.00", "undefined"],
        Row("pairs", "", "accuracy"): ["75.00"] * 3,
        Row("pairs", "island_effects", "accuracy"): ["70.00"] * 3,
    }
    # By seed: nli 57 and 59, qa 61 and 62, pairs 75 (without its group).
    assert scores.means["bert@100"].values == pytest.approx(((57 + 61 + 75) / 3, (59 + 62 + 75) / 3))
    assert scores.means["txl@200"].show() == "-"


def test_random_weights_are_step_0_of_a_run_and_have_no_scores_of_pairs(tmp_path: Path):
    config = SuiteConfig(tasks=(TASKS[0], TASKS[2]), num_seeds=1)
    subjects = [Subject(Path("/runs/bert"), 0, ""), SUBJECTS[0]]
    jobs = list(list_jobs(config, subjects, tmp_path))
    assert [job.label for job in jobs] == ["bert@random/nli-seed-1", "bert@100/nli-seed-1", "bert@100/pairs"]
    for job in jobs:
        job.place.parent.mkdir(parents=True, exist_ok=True)
        job.write({"": {"accuracy": 0.5}, "mm": {"accuracy": 0.5}})
    found = collect(config, jobs, [])
    assert found.cells[Row("pairs", "", "accuracy"), "bert@random"].show() == "-"
    (points,) = curves_of(found, {subject.label: subject for subject in subjects})["nli (accuracy)"].values()
    assert [step for step, _ in points] == [0, 100]


def test_different_numbers_of_seeds_have_a_mean_without_a_deviation(tmp_path: Path):
    config = SuiteConfig(tasks=(TASKS[1].model_copy(update={"num_seeds": 1, "metrics": ()}), TASKS[0]), num_seeds=2)
    jobs = list(list_jobs(config, SUBJECTS[:1], tmp_path))
    for job in jobs:
        job.place.parent.mkdir(parents=True, exist_ok=True)
        seed = job.seed or 0
        job.write({"": {"accuracy": 0.5 + 0.1 * seed, "f1": 80.0}, "mm": {"accuracy": 0.7}})
    assert collect(config, jobs, []).means["bert@100"].show() == "73.75"  # 80, and the mean of 65 and 70


def test_markdown_has_published_figures_and_their_sources(scores: Scores, capsys: pytest.CaptureFixture[str]):
    text = to_markdown(scores)
    lines = text.splitlines()
    assert lines[2] == "| task | metric | bert@100 | bert@200 | txl@200 | BERT |"
    assert "| nli | accuracy | 63.00 ± 1.41 | 73.00 ± 1.41 | 72.00 (1 of 2, 1 failed) | 84.6 |" in lines
    assert "| nli: mm | accuracy | 53.00 ± 1.41 | 63.00 ± 1.41 | 62.00 (1 of 2, 1 failed) |  |" in lines
    assert "- BERT: a paper | table 1" in lines
    assert any(line.startswith("| mean over tasks |  | 64.83 ± ") for line in lines)
    print_table(scores)
    printed = capsys.readouterr().out
    assert "72.00 (1 of 2, 1 failed)" in printed and "BERT: a paper | table 1" in printed
    only = [label for label in scores.labels if label != "bert@100"]
    assert "| bert | txl |" in to_markdown(replace(scores, labels=only))  # one step each


def test_csv_has_full_precision_and_every_state(scores: Scores):
    rows = list(csv.DictReader(io.StringIO(to_csv(scores, {subject.label: subject for subject in SUBJECTS}))))
    by_key = {(row["task"], row["part"], row["metric"], row["model"]): row for row in rows}
    row = by_key["nli", "", "accuracy", "bert@200"]
    assert (float(row["mean"]), row["step"], row["run"]) == (pytest.approx(73), "200", "/runs/bert")
    assert [float(value) for value in row["values"].split()] == pytest.approx([72, 74])
    assert by_key["nli", "", "accuracy", "txl@200"]["state"] == "failed"
    assert by_key["qa", "", "f1", "txl@200"]["state"] == "unfinished"
    assert by_key["qa", "", "exact_match", "txl@200"]["mean"] == ""
    assert by_key["nli", "", "accuracy", "BERT"]["source"] == FIGURE.source


def test_several_steps_of_a_run_are_plotted(scores: Scores, tmp_path: Path):
    subjects = {subject.label: subject for subject in SUBJECTS}
    curves = curves_of(scores, subjects)
    assert list(curves) == [
        "nli (accuracy)",
        "qa (f1)",
        "qa (exact_match)",
        "pairs (accuracy)",
        "mean over tasks",
    ]
    assert [(step, cell.mean) for step, cell in curves["nli (accuracy)"]["bert"]] == [(100, 63), (200, 73)]
    assert [step for step, _ in curves["nli (accuracy)"]["txl"]] == [200]
    written = write_report(tmp_path, scores, subjects)
    assert [path.name for path in written] == ["table.md", "table.csv", "scores.png"]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    one = replace(scores, labels=["txl@200"])
    assert curves_of(one, subjects) == {}
