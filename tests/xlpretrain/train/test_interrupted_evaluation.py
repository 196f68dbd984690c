"""A stop is heard during an evaluation; what was cut is done again, and nobody can tell afterwards."""

import json
import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import commands
import pytest
from labelled_files import _files

from xlpretrain.checkpoint.train_state import best_step

PLAIN = {"type": "plain", "precision": "fp32"}
ZERO_3 = {"type": "deepspeed", "zero_stage": 3, "precision": "bf16"}
LONG = {"every_steps": 2, "max_tokens": 16_000, "num_streams": 2, "seq_len": 8}  # a thousand batches


def write_config(folder: Path, dataset: Path, engine: dict[str, object], evals: dict[str, object]) -> Path:
    return commands.write_config(
        folder / "tiny.yaml",
        dataset,
        engine=engine,
        wandb={"mode": "disabled"},
        max_steps=4,
        schedule={"type": "cosine", "warmup_steps": 1},
        checkpoint={"every_steps": 2, "keep": 2, "keep_best": True},
        eval=evals,
    )


def state_of(run: Path, step: int) -> dict[str, Any]:
    """The state in the checkpoint of a step."""
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())["state"]


def wait_for_checkpoint(run: Path, step: int, process: Popen[str]) -> None:
    """Until it lies there, which is during the evaluation of its step."""
    while not (run / "checkpoints" / f"step-{step:08d}").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def logged(run: Path) -> list[int]:
    return [row["step"] for row in commands.read_metrics(run)]


def what_counts(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times and memory: what must be equal in every bit, names in their order included."""
    rows = [{k: v for k, v in row.items() if k != "memory/peak_bytes"} for row in commands.read_metrics(run)]
    return [{k: v if k.partition("/")[0] not in ("time", "goodput") else 0 for k, v in row.items()} for row in rows]


@pytest.mark.parametrize(
    ("engine", "processes"),
    [
        pytest.param(PLAIN, 2, id="plain"),
        pytest.param(PLAIN, 1, id="one-process", marks=pytest.mark.full),
        pytest.param(PLAIN, 3, id="a-rank-without-text", marks=pytest.mark.full),
        pytest.param(ZERO_3, 2, id="zero-3", marks=pytest.mark.full),
    ],
)
def test_an_evaluation_that_is_cut_is_done_again_and_nothing_differs(
    tiny_dataset: Path, tmp_path: Path, engine: dict[str, object], processes: int
):
    config = write_config(tmp_path, tiny_dataset, engine, LONG)
    undisturbed, run = (tmp_path / "runs" / name for name in ("undisturbed", "cut"))
    commands.run("train", config, "name=undisturbed", "--nproc", processes)

    process = commands.start("train", config, "name=cut", "--nproc", processes)
    wait_for_checkpoint(run, 2, process)  # what was due to be saved is saved first
    commands.kill_all(process)
    assert logged(run) == [1], "it was too fast to be killed"

    process = commands.start("resume", run, "--nproc", processes)
    commands.read_until(process, "resuming from step 2")
    (run / "STOP").touch()
    commands.finish(process, expect=75)
    assert logged(run) == [1]
    assert state_of(run, 2)["unrecorded"]["train/loss"] == what_counts(undisturbed)[1]["train/loss"]

    process = commands.start("resume", run, "--nproc", processes)
    wait_for_checkpoint(run, 4, process)
    process.send_signal(signal.SIGTERM)  # during the last evaluation
    commands.finish(process, expect=75)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["reason"], status["step"]) == ("stopped", "signal", 4)
    assert status["goodput"]["goodput/lost_s"] > 0 and status["goodput"]["goodput/steps_redone"] == 0
    assert logged(run) == [1, 2, 3]
    assert state_of(run, 2)["unrecorded"] is None and best_step(state_of(run, 2)) == 2

    commands.run("resume", run, "--nproc", processes)
    assert what_counts(run) == what_counts(undisturbed)
    assert [row["step"] for row in commands.read_metrics(run) if "valid/loss" in row] == [2, 4]
    for step in (2, 4):
        theirs = state_of(undisturbed, step)
        assert {**state_of(run, step), "wandb_id": theirs["wandb_id"]} == theirs


@pytest.mark.full
def test_a_stop_during_a_probe_keeps_the_evaluation_before_it(tiny_dataset: Path, tmp_path: Path):
    files = {name: str(path) for name, path in _files(tmp_path).items()}
    evals = {"every_steps": 2, "max_tokens": 2000, "probe": {**files, "every_steps": 2, "steps": 300}}
    config = write_config(tmp_path, tiny_dataset, PLAIN, evals)
    undisturbed, run = (tmp_path / "runs" / name for name in ("undisturbed", "cut"))
    commands.run("train", config, "name=undisturbed", "--nproc", 2)
    process = commands.start("train", config, "name=cut", "--nproc", 2)
    wait_for_checkpoint(run, 2, process)
    while best_step(state_of(run, 2)) is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    commands.finish(process, expect=75)
    assert logged(run) == [1]
    known = state_of(run, 2)["unrecorded"]
    assert known["valid/loss"] == what_counts(undisturbed)[1]["valid/loss"] and "valid/probe_loss" not in known
    commands.run("resume", run, "--nproc", 2)
    assert what_counts(run) == what_counts(undisturbed)
