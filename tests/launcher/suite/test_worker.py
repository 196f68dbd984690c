"""Jobs of a suite: scores of minimal pairs, metrics of classifiers, and the request for a process.

Modules: pairs.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from imported_runs import make_run
from labelled_files import _files
from made_suites import write_blimp
from sklearn.metrics import f1_score

import xlpretrain
from launcher.suite.definition import FinetuneTask, PairsTask
from launcher.suite.jobs import Job
from launcher.suite.pairs import accuracies
from launcher.suite.subjects import find_subjects
from launcher.suite.worker import Request, second_f1, work


def _request(job: Job) -> Request:
    return Request.of(job, keep_checkpoints=True, num_processes=1, max_restarts=0)


@pytest.mark.parametrize(("kind", "within_word"), [("transformer_xl", True), ("albert", False), ("albert", True)])
def test_minimal_pairs_are_scored_as_by_score_and_counted_by_group(
    tmp_path: Path, tiny_dataset: Path, kind: str, within_word: bool
):
    run = make_run(tmp_path / "runs", tiny_dataset, {"type": kind})
    (subject,), _ = find_subjects([str(run.path)])
    task = PairsTask(name="blimp", data=write_blimp(tmp_path / "blimp"), group="linguistics_term", batch_size=4)
    task = task.model_copy(update={"within_word": within_word})
    job = Job(tmp_path / "out", subject, task, None)
    assert work(_request(job)) == 0
    found = job.read()
    pairs = [
        json.loads(line)
        for path in sorted((tmp_path / "blimp" / "data").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    loaded = xlpretrain.load(run.path, device="cpu", precision="fp32")
    hidden = within_word and kind == "albert"
    nats = [
        [one.nats for one in loaded.log_likelihoods([pair[key] for pair in pairs], within_word=hidden)]
        for key in ("sentence_good", "sentence_bad")
    ]
    right = np.array(nats[0]) > np.array(nats[1])
    island = np.array([pair["linguistics_term"] == "island_effects" for pair in pairs])
    assert found == {
        "": {"accuracy": pytest.approx(right.mean())},
        "argument_structure": {"accuracy": pytest.approx(right[~island].mean())},
        "island_effects": {"accuracy": pytest.approx(right[island].mean())},
    }
    written = [json.loads(line) for line in (job.place / "passive_1.jsonl").read_text().splitlines()]
    assert [one["good"] for one in written] == pytest.approx(nats[0][4:8], rel=1e-5)


def test_files_that_have_been_scored_are_not_scored_again(tmp_path: Path, tiny_dataset: Path):
    run = make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"})
    (subject,), _ = find_subjects([str(run.path)])
    job = Job(tmp_path / "out", subject, PairsTask(name="blimp", data=write_blimp(tmp_path / "blimp")), None)
    job.place.mkdir(parents=True)
    groups = {"file": "wh_island"}
    kept = json.dumps({"good": -1.0, "bad": -2.0, "right": True, "groups": groups}) + "\n"
    for name in ("wh_island", "passive_1"):
        (job.place / f"{name}.jsonl").write_text(kept)
    assert work(_request(job)) == 0
    assert (job.place / "wh_island.jsonl").read_text() == kept
    assert len((job.place / "adjunct_island.jsonl").read_text().splitlines()) == 4


def test_accuracies_are_averaged_over_files_or_over_pairs(tmp_path: Path):
    outcomes = {"a": [True], "b": [False, False, True, False]}
    files = []
    for name, right in outcomes.items():
        lines = [{"good": 0, "bad": 0, "right": one, "groups": {"file": name}} for one in right]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = PairsTask(name="p", data=tmp_path)
    assert accuracies(files, task) == {"": 0.4}
    by_file = task.model_copy(update={"group": "file", "average_over": "file"})
    assert accuracies(files, by_file) == {"": 0.625, "a": 1.0, "b": 0.25}


def test_the_f1_of_the_second_label_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(200):
        truth, predicted = (rng.random((2, rng.integers(1, 12))) < rng.choice([0.0, 0.3, 1.0], (2, 1))).astype(int)
        confusion = np.zeros((2, 2), int)
        np.add.at(confusion, (truth, predicted), 1)
        expected = f1_score(truth, predicted, zero_division=0)
        assert second_f1({"confusion": confusion.tolist()}) == pytest.approx(expected)
    assert second_f1({"confusion": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}) is None


def test_random_weights_are_fine_tuned_from_no_checkpoint(tmp_path: Path, tiny_dataset: Path):
    run = make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"})
    random, trained = find_subjects([f"{run.path}@random", str(run.path)])[0]
    task = FinetuneTask(name="cls", **_files(tmp_path))
    assert Job(tmp_path, random, task, 1).config().init_from is None
    assert Job(tmp_path, trained, task, 1).config().init_from == trained.checkpoint


def test_a_request_is_read_as_it_was_written(tmp_path: Path, tiny_dataset: Path):
    run = make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"})
    (subject,), _ = find_subjects([str(run.path)])
    job = Job(tmp_path, subject, PairsTask(name="p", data=tmp_path, group="file"), None)
    assert Request(**json.loads(_request(job).to_json())).job == job
