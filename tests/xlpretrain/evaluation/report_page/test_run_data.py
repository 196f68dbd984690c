"""What a report knows of a run: folder, interruptions, goodput, origin, figures. Modules: figures.py."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from made_runs import append_rows, make_rows, make_run
from repository import TESTS

from xlpretrain.errors import LaunchError
from xlpretrain.evaluation.report_page import figures
from xlpretrain.evaluation.report_page.run_data import RunData, find_origin, open_runs
from xlpretrain.tracking.metrics_file import read_metrics


def read(*folders: Path) -> list[RunData]:
    readers = open_runs(folders)
    for reader in readers:
        reader.refresh()
    return [reader.read() for reader in readers]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were trained: pretraining and a classifier, of the oldest format."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(TESTS / "golden" / "0.1.0" / "folders.tar.xz") as packed:
        packed.extractall(folder)
    return folder / "runs"


def test_a_trained_run_is_read_whole(golden: Path):
    (run,) = read(golden / "transformer_xl_zero1_bf16_2")
    rows = list(read_metrics(run.folder.metrics))
    np.testing.assert_equal(run.column("train/loss"), [row["train/loss"] for row in rows])
    found = figures.figures_of(run)
    assert (found.state, found.step, found.max_steps, found.tokens) == ("finished", 6, 6, 576)
    assert found.train_loss == rows[-1]["train/loss"]
    assert found.best_loss == rows[-1]["valid/loss"]
    ((what, last),) = figures.evaluations_of(run)
    assert (what, last.step) == ("last", 6)
    assert last.metrics["perplexity"] == pytest.approx(np.exp(last.metrics["loss"]))
    (corpus,) = figures.corpora_of(run)
    assert corpus.share == 1.0
    assert corpus.epochs == rows[-1]["data/epoch"]
    assert run.problems == []


def test_a_classifier_has_its_accuracy_and_its_scores(golden: Path):
    (run,) = read(golden / "classifier")
    assert figures.evaluations_of(run)[0][1].metrics["label_accuracy"] == 0.75
    assert run.scores["accuracy"] == 0.75


def test_time_is_that_of_all_attempts(tmp_path: Path):
    (run,) = read(make_run(tmp_path / "a", make_rows(100, crash_at=40)))
    used = run.goodput()
    np.testing.assert_allclose(run.running_s()[-1], used.total_s)
    np.testing.assert_allclose(run.clock_s(), run.running_s(), rtol=1e-6)
    (cut,) = run.interruptions()
    assert (cut.step, cut.kind, cut.away_s, cut.steps_redone) == (41, "restart", 420.0, 3)


def test_a_rollback_is_told_from_a_restart(tmp_path: Path):
    rows = make_rows(10, crash_at=4)
    for row in rows[4:]:
        row["events/rollbacks"] = 1
    (run,) = read(make_run(tmp_path / "a", rows))
    assert [cut.kind for cut in run.interruptions()] == ["rollback"]


def test_a_run_without_metrics_is_empty(tmp_path: Path):
    (run,) = read(make_run(tmp_path / "a", []))
    found = figures.figures_of(run)
    assert (found.state, found.step, found.max_steps) == ("not started", 0, 100_000)
    assert np.isnan([found.tokens, found.train_loss, found.best_loss, found.tokens_per_second, found.share]).all()
    assert figures.evaluations_of(run) == []
    assert run.interruptions() == []


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    folder = make_run(tmp_path / "a", make_rows(3))
    (folder / "status.json").write_text("{")
    (folder / "provenance.json").write_text("no")
    (folder / "config.yaml").write_text("a: b: c")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("damaged\n")
    (run,) = read(folder)
    told = " ".join(run.problems)
    assert all(name in told for name in ("status.json", "provenance.json", "config.yaml", "1 damaged lines"))
    assert len(run.steps) == 3


def test_a_reader_sees_what_is_new(tmp_path: Path):
    rows = make_rows(10)
    folder = make_run(tmp_path / "a", rows[:5])
    (reader,) = open_runs([folder])
    assert reader.refresh()
    assert not reader.refresh()
    append_rows(folder, rows[5:])
    assert reader.refresh()
    assert reader.read().steps[-1] == 10
    (folder / "changes.jsonl").write_text(json.dumps({"step": 3, "changed": {"max_steps": [5, 10]}}) + "\n")
    assert reader.refresh()
    assert reader.read().changes[0]["changed"] == {"max_steps": [5, 10]}
    shutil.rmtree(folder)
    assert reader.refresh()
    assert not len(reader.read().steps)


def test_labels_are_the_shortest_that_differ(tmp_path: Path):
    folders = [make_run(tmp_path / name / "seed-1", []) for name in ("x", "y")]
    assert [run.label for run in read(*folders)] == ["x/seed-1", "y/seed-1"]
    assert read(folders[0])[0].label == "seed-1"
    with pytest.raises(LaunchError, match="given twice"):
        open_runs([folders[0], folders[0]])


def test_the_origin_of_weights_is_found(tmp_path: Path):
    parent = make_run(tmp_path / "parent", make_rows(100))
    of_checkpoint = make_run(tmp_path / "b", [], {"init_from": str(parent / "checkpoints" / "step-00000040")})
    late = make_rows(3)
    for row in late:
        row["time/logged_at_s"] += 1e6
    of_run = make_run(tmp_path / "c", late, {"init_from": str(parent)})
    runs = read(parent, of_checkpoint, of_run)
    assert find_origin(runs[1], runs) == (runs[0], 40)
    assert find_origin(runs[2], runs) == (runs[0], 100)
    assert find_origin(runs[0], runs) is None
    assert find_origin(runs[1], runs[1:]) is None


def test_shares_of_a_mixture_have_the_names_of_its_metrics(tmp_path: Path):
    train = [{"path": "data/web", "weight": 3.0}, {"path": "data/books", "weight": 1.0}]
    rows = [{**row, "data/epoch/web": 0.5, "train/corpus_loss/books": 2.0} for row in make_rows(4)]
    folder = make_run(tmp_path / "a", rows, {"data": {"type": "corpus", "train": train}})
    (folder / "provenance.json").write_text(json.dumps({"corpora": ["web", "books"]}))
    web, books = figures.corpora_of(read(folder)[0])
    assert (web.name, web.share, web.epochs) == ("web", 0.75, 0.5)
    assert (books.name, books.share, books.train_loss) == ("books", 0.25, 2.0)


def test_losses_that_are_not_finite_are_counted(tmp_path: Path):
    rows = make_rows(5)
    rows[2]["train/loss"] = None
    (run,) = read(make_run(tmp_path / "a", rows))
    assert figures.num_nonfinite(run) == 1


def test_a_running_run_that_is_silent_says_so(tmp_path: Path):
    (run,) = read(make_run(tmp_path / "a", make_rows(3), state="running", reason="", updated_at=1.0))
    assert figures.describe_state(run).startswith("running, silent for ")
    (run,) = read(make_run(tmp_path / "b", make_rows(3), state="failed", reason="crash"))
    assert figures.describe_state(run) == "failed (crash)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.34567, "2.346"), (52_007.9, "52,008"), (0.0003, "3.000e-04"), (0.0, "0"), (576.0, "576"), (float("nan"), "-")],
)
def test_numbers_have_four_digits(value: float, shown: str):
    assert figures.show(value) == shown


def test_counts_are_short():
    assert [figures.show_count(value) for value in (9.0, 12_345.0, 1.6384e9)] == ["9", "12,345", "1.64 B"]
