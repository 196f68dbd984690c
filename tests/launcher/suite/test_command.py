"""`xlpretrain suite`: one report of all mistakes before anything is written, devices, and whole suites.

Modules: checks.py, jobs.py.
"""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import pytest
import yaml
from commands import finish, run, start
from imported_runs import make_run
from labelled_files import _files, _write
from made_suites import write_glue, write_pairs

from launcher.suite.command import SuiteOptions, run_suite, slots
from xlpretrain.errors import ConfigError, LaunchError
from xlpretrain.run_dir import lease

PLAIN = ["engine.type=plain", "engine.precision=fp32", "wandb.mode=disabled"]


def _suite(path: Path, *tasks: dict, **keys) -> Path:
    path.write_text(yaml.safe_dump({"num_seeds": 2, "overrides": PLAIN, **keys, "tasks": list(tasks)}))
    return path


def _refused(folder: Path, runs: list[str], suite: Path | str, data: Path | None = None) -> str:
    before = sorted(path for path in folder.rglob("*"))
    options = SuiteOptions(num_processes=1)
    with pytest.raises(ConfigError) as raised:
        run_suite(runs, str(suite), data=data, to=folder / "out", only=[], overrides=[], options=options)
    assert sorted(path for path in folder.rglob("*")) == before, "nothing may be written"
    return str(raised.value)


def test_missing_files_and_runs_are_in_one_report(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"}).path
    files = {key: str(path) for key, path in _files(tmp_path).items()}
    suite = _suite(
        tmp_path / "s.yaml",
        {"name": "cls", **files, "parts": {"other": str(tmp_path / "other.csv")}},
        {"name": "pairs", "type": "pairs", "data": str(tmp_path / "pairs")},
    )
    text = _refused(tmp_path, [str(source), f"{source}@5", str(tmp_path / "norun")], suite)
    assert "4 problems" in text
    assert "no checkpoint of step 5; there are those of steps 0" in text and "norun: not a run folder" in text
    for key, path in {"cls.parts.other": "other.csv", "pairs.data": "pairs"}.items():
        assert re.search(rf"{key} +{tmp_path}/{path}: no such file", text)


def test_what_no_fine_tune_could_use_is_in_one_report(tmp_path: Path, tiny_dataset: Path):
    runs = [
        str(make_run(tmp_path / "runs", tiny_dataset, {"type": kind}, name=kind).path) for kind in ("albert", "xlnet")
    ]
    files = {key: str(path) for key, path in _files(tmp_path).items()}
    one = str(_write(tmp_path / "one.csv", [("a", "x"), ("b", "x")], ("text", "label")))
    veto = str(_write(tmp_path / "veto.csv", [("a", "veto")], ("text", "label")))
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    pairs.write_text(pairs.read_text().replace("sentence_bad", "bad"))
    suite = _suite(
        tmp_path / "s.yaml",
        {"name": "sound", **files},
        {"name": "one", "train": one, "valid": one},
        {"name": "column", **files, "label": "mark"},
        {"name": "key", **files, "overrides": ["model.mem_len=4"]},
        {"name": "part", **files, "parts": {"veto": veto}},
        {"name": "pairs", "type": "pairs", "data": str(pairs)},
    )
    text = _refused(tmp_path, runs, suite)
    assert "all rows have the label 'x'" in text and "one of albert" in text and "one of xlnet" in text
    assert "no column 'mark'" in text
    assert "key of albert" in text and "part of xlnet" in text and "unknown labels veto" in text
    assert "pairs" in text and "no column 'sentence_bad'" in text
    assert "sound" not in text


def test_a_built_in_suite_of_a_folder_without_its_files_names_each(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"}).path
    (write_glue(tmp_path / "glue") / "RTE" / "dev.tsv").unlink()
    text = _refused(tmp_path, [str(source)], "glue", tmp_path / "glue")
    assert "glue: 1 problem\n" in text and f"rte.valid  {tmp_path}/glue/RTE/dev.tsv: no such file" in text


def test_a_folder_in_use_is_refused(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"}).path
    suite = _suite(
        tmp_path / "s.yaml", {"name": "p", "type": "pairs", "data": str(write_pairs(tmp_path / "p.jsonl", 2))}
    )
    held = lease.acquire(tmp_path / "out" / "lease", launch_id="", take_over=False)
    held.start_heartbeat()
    with pytest.raises(LaunchError, match="another process runs a suite in it"):
        run_suite(
            [str(source)], str(suite), data=None, to=tmp_path / "out", only=[], overrides=[], options=SuiteOptions()
        )
    held.close()


def test_each_job_has_gpus_of_its_own():
    assert slots(SuiteOptions(), []) == [{}] and slots(SuiteOptions(num_jobs=2), []) == [{}, {}]
    four = ["4", "5", "6", "7"]
    names = [environment["CUDA_VISIBLE_DEVICES"] for environment in slots(SuiteOptions(), four)]
    assert names == four
    names = [environment["CUDA_VISIBLE_DEVICES"] for environment in slots(SuiteOptions(num_processes=2), four)]
    assert names == ["4,5", "6,7"]
    assert len(slots(SuiteOptions(num_jobs=1, num_processes=2), four)) == 1
    with pytest.raises(ConfigError, match="--jobs 3: 3 times 2 processes need more than 4 GPUs"):
        slots(SuiteOptions(num_jobs=3, num_processes=2), four)
    with pytest.raises(ConfigError, match="--nproc 5: there are 4 GPUs"):
        slots(SuiteOptions(num_processes=5), four)


def _rows(out: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with (out / "table.csv").open() as file:
        return {(row["task"], row["part"], row["model"]): row for row in csv.DictReader(file)}


@pytest.mark.full
def test_a_suite_killed_and_interrupted_ends_with_a_whole_table(tmp_path: Path, tiny_dataset: Path):
    """The suite's process is killed in the first fine-tune, and interrupted in the second."""
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "albert"}).path
    files = {key: str(path) for key, path in _files(tmp_path).items()}
    cls = {"name": "cls", **files, "parts": {"again": files["valid"]}, "overrides": ["max_steps=6"]}
    pairs = {"name": "pairs", "type": "pairs", "data": str(write_pairs(tmp_path / "p.jsonl", 6))}
    suite = _suite(tmp_path / "s.yaml", cls, pairs)
    out = tmp_path / "out"
    command = ("suite", source, "--suite", suite, "--to", out, "--nproc", 1)
    first = start(*command)
    place = out / "run@0" / "cls-seed-1"
    while not (place / "metrics.jsonl").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.kill()  # its worker saves and exits
    first.communicate()
    assert not (out / "table.md").exists() and not place.with_name("cls-seed-1.json").exists()

    second = start(*command)
    while not (out / "run@0" / "cls-seed-2" / "status.json").exists():
        assert second.poll() is None, second.communicate()
        time.sleep(0.05)
    second.send_signal(2)
    _, err = finish(second, expect=75)
    assert re.search(r"stopped by SIGINT: (1 job is|2 jobs are) left; rerun the command to continue", err)
    assert _rows(out)["pairs", "", "run@0"]["state"] == "unfinished"
    done = place.with_name("cls-seed-1.json").stat().st_mtime_ns

    _suite(suite, {**cls, "overrides": ["max_steps=7"]}, pairs)
    _, err = run(*command, expect=2)
    assert "cls.overrides" in err and "changed since the suite began" in err

    _suite(suite, cls, pairs, {"name": "new", **files, "overrides": ["max_steps=2"], "num_seeds": 1})
    out_text, _ = run(*command)
    assert re.search("[12] of 4 jobs are finished already", out_text)
    assert place.with_name("cls-seed-1.json").stat().st_mtime_ns == done, "what is finished is not run again"
    rows = _rows(out)
    assert {row["state"] for row in rows.values()} == {"finished"}
    values = [json.loads(place.with_name(f"cls-seed-{seed}.json").read_text()) for seed in (1, 2)]
    mean = sum(one[""]["accuracy"] for one in values) / 2
    assert float(rows["cls", "", "run@0"]["mean"]) == pytest.approx(100 * mean)
    assert rows["cls", "again", "run@0"]["mean"] == rows["cls", "", "run@0"]["mean"]
    assert "| cls | accuracy | " in (out / "table.md").read_text()


@pytest.mark.full
def test_a_job_that_fails_loses_no_other_and_is_tried_again(tmp_path: Path, tiny_dataset: Path):
    source = make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"}).path
    files = {key: str(path) for key, path in _files(tmp_path).items()}
    suite = _suite(
        tmp_path / "s.yaml",
        {"name": "cls", **files, "num_seeds": 1, "overrides": ["max_steps=2"]},
        {"name": "pairs", "type": "pairs", "data": str(write_pairs(tmp_path / "p.jsonl", 2))},
        keep_checkpoints=False,
    )
    out = tmp_path / "out"
    command = ("suite", source, "--suite", suite, "--to", out, "--nproc", 1)
    (out / "run@0").mkdir(parents=True)
    (out / "suite.json").write_text('{"tasks": {}, "subjects": {}}')
    (out / "run@0" / "pairs").touch()  # where its folder should be
    _, err = run(*command, expect=1)
    assert "1 of 2 jobs failed; rerun the command to try them again" in err
    rows = _rows(out)
    assert rows["pairs", "", "run@0"]["state"] == "failed" and rows["cls", "", "run@0"]["state"] == "finished"
    assert "| pairs | accuracy | failed |" in (out / "table.md").read_text()
    assert list((out / "run@0" / "cls-seed-1" / "checkpoints").glob("step-*")) == []
    (out / "run@0" / "pairs").unlink()
    run(*command)
    assert _rows(out)["pairs", "", "run@0"]["state"] == "finished"
