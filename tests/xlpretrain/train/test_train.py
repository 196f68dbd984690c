"""Whole runs through the real command line.

Modules: report.py, run.py, evaluate.py, evaluation/__main__.py.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import commands
import pytest
from disturbed_runs import disturb
from guarded import all_trackers, check_all_trackers
from repository import ROOT
from small_disk import mount_small_disk
from wandb_file import read_run_history

import xlpretrain
from xlpretrain.checkpoint.files import list_checkpoints, verify_whole

BF16_ZERO_1 = {"type": "deepspeed", "zero_stage": 1, "precision": "bf16"}
LAYOUTS = [
    {"type": "deepspeed", "zero_stage": stage, "precision": precision}
    for stage in (1, 2, 3)
    for precision in ("fp32", "bf16")
]


def name_of(engine: dict) -> str:
    return f"zero-{engine['zero_stage']}-{engine['precision']}"


@pytest.fixture(scope="module")
def config(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.write_config(tmp_path_factory.mktemp("train") / "tiny.yaml", tiny_dataset, engine=BF16_ZERO_1)


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> Path:
    """A run of 60 steps that nothing interrupted."""
    commands.run("train", config, "name=undisturbed", "--nproc", 2)
    return config.parent / "runs" / "undisturbed"


def test_a_run_learns_and_leaves_what_it_promises(undisturbed: Path):
    rows = commands.read_metrics(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.3
    assert [row["step"] for row in rows if "valid/loss" in row] == [30, 60]
    assert [path.name for path in sorted((undisturbed / "checkpoints").iterdir())] == ["step-00000040", "step-00000060"]
    assert json.loads((undisturbed / "status.json").read_text())["state"] == "finished"
    assert sorted(path.name for path in (undisturbed / "logs").iterdir()) == [
        "job.log", "rank-00000.log", "rank-00001.log"
    ]  # fmt: skip
    assert "finished at step 60 of 60" in commands.run("logs", undisturbed)[0]
    assert (undisturbed / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [row["train/step"] for row in read_run_history(undisturbed)] == list(range(1, 61))


def test_stopped_and_killed_it_resumes_in_every_bit(config: Path, undisturbed: Path):
    folder = disturb(config, "disturbed")
    assert commands.curve(folder) == commands.curve(undisturbed)
    logged = {row["train/step"]: row["train/loss"] for row in read_run_history(folder)}
    assert logged == {row["step"]: row["train/loss"] for row in commands.read_metrics(folder)}


@pytest.mark.full
def test_all_trackers_show_every_step_of_a_disturbed_run_and_change_no_bit(config: Path, undisturbed: Path):
    trackers = all_trackers(config.parent)
    folder = disturb(config, "tracked", f"trackers={json.dumps(trackers)}")
    assert commands.curve(folder) == commands.curve(undisturbed)
    check_all_trackers(folder, config.parent)


@pytest.mark.full
@pytest.mark.parametrize("engine", [e for e in LAYOUTS if e != BF16_ZERO_1], ids=name_of)
def test_every_stage_and_precision_resumes_in_every_bit(tiny_dataset: Path, tmp_path: Path, engine: dict):
    config = commands.write_config(tmp_path / "tiny.yaml", tiny_dataset, engine=engine)
    commands.run("train", config, "name=undisturbed", "--nproc", 2)
    assert commands.curve(disturb(config, "disturbed")) == commands.curve(tmp_path / "runs" / "undisturbed")


def test_bare_torchrun_is_the_same_run_survives_its_wandb_and_obeys_a_stop_file(config: Path, undisturbed: Path):
    folder = config.parent / "runs" / "bare"
    process = commands.start(
        "--nproc-per-node", 2, "-m", "xlpretrain", config, "name=bare", "eval.every_steps=7", program="torchrun"
    )
    commands.wait_for_step(folder, 3, process)
    assert commands.kill_wandb(process) > 0
    commands.wait_for_step(folder, 10, process)
    commands.run("stop", folder)
    _, err = commands.finish(process, expect=0)
    assert "Traceback" not in err
    assert "W&B failed and is off" in err
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "user")
    bare = commands.curve(folder)
    assert len(bare) in (status["step"], status["step"] - 1), "the evaluation of its last step may still be due"
    assert len(bare) >= 10
    # Evaluating more often does not disturb training.
    assert any(row[3] is not None for row in bare.values())
    assert {step: row[:3] for step, row in bare.items()} == {
        step: row[:3] for step, row in commands.curve(undisturbed).items() if step in bare
    }
    assert "xlpretrain resume" in commands.refused("train", config, "name=bare", "--nproc", 2)


def test_a_finished_run_is_left_as_it_is_and_goes_on_when_it_gets_longer(undisturbed: Path, config: Path):
    before = sorted((path, path.stat().st_mtime_ns) for path in undisturbed.rglob("*"))
    out, _ = commands.run("train", config, "name=undisturbed", "--nproc", 2)
    assert "already finished" in out
    assert sorted((path, path.stat().st_mtime_ns) for path in undisturbed.rglob("*")) == before


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder for `forbid_writing`."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    yield folder
    if os.getuid() == 0:
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)
    else:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


def forbid_writing(folder: Path) -> None:
    if os.getuid() != 0:
        subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
        return
    for mount in (["--bind", str(folder), str(folder)], ["-o", "remount,ro,bind", str(folder)]):
        if subprocess.run(["mount", *mount], capture_output=True).returncode != 0:
            pytest.skip("root cannot mount here, and may write everywhere else")


def test_a_run_that_may_only_be_read_is_refused_in_one_message_and_read(undisturbed: Path, read_only: Path):
    run = read_only / "run"
    shutil.copytree(undisturbed, run)
    forbid_writing(read_only)
    assert f"{run}: not writable" in commands.refused("resume", run, "max_steps=70")
    assert "cannot be created: " in commands.refused("stop", run)
    assert "finished" in commands.run("status", run)[0]


def test_a_source_tree_that_is_not_installed_saves(tiny_dataset: Path, tmp_path: Path):
    site = tmp_path / "site"  # all but us
    site.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "xlpretrain" not in path.name:
            (site / path.name).symlink_to(path)
    config = commands.write_config(
        tmp_path / "tiny.yaml", tiny_dataset, name="r", engine={"type": "plain", "precision": "fp32"}
    )
    done = subprocess.run(
        [sys.executable, "-S", "-m", "xlpretrain", config, "max_steps=6", "eval.max_tokens=100"],
        env={**commands.environment(), "PYTHONPATH": f"{site}:{ROOT}", "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (saved,) = list_checkpoints(tmp_path / "runs" / "r" / "checkpoints")
    assert json.loads((saved / "manifest.json").read_text())["layout"]["xlpretrain"] == xlpretrain.__version__
    assert xlpretrain.__version__ == version("xlpretrain")
    listed = subprocess.run(
        [sys.executable, "-S", "-m", "launcher", "config", "--list"],
        env={**commands.environment(), "PYTHONPATH": f"{site}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "quickstart" in listed.stdout, listed.stderr


@pytest.mark.full
@pytest.mark.parametrize("many", [2, 4])
def test_eval_is_the_same_on_one_process_and_many(undisturbed: Path, many: int):
    losses = []
    for processes in (1, many):
        out, _ = commands.run("eval", undisturbed, "--max-tokens", 2000, "--nproc", processes)
        losses.append(float(out.split("nats each")[1].split()[0]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.full
def test_no_secret_reaches_the_run_folder(config: Path, monkeypatch: pytest.MonkeyPatch):
    key = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2"
    monkeypatch.setattr(commands, "EXTRA", {"WANDB_API_KEY": key, "WANDB_MODE": "offline", "HF_TOKEN": key})
    out, err = commands.run(
        "train", config, "name=secret", "max_steps=2", "schedule.warmup_steps=1", "engine.type=plain", "--nproc", 1
    )
    assert key not in out + err
    for path in (config.parent / "runs" / "secret").rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


@pytest.mark.full
def test_weights_of_another_run_are_a_start_and_a_time_budget_is_an_end(config: Path, undisturbed: Path):
    overrides = [f"init_from={undisturbed}", "engine.type=plain", "engine.precision=fp32", "eval.every_steps=1"]
    arguments = ("train", config, "name=second", *overrides, "--nproc", 1)
    commands.run(*arguments, "max_steps=1", "schedule.total_steps=60")
    first, last = (commands.curve(config.parent / "runs" / name) for name in ("second", "undisturbed"))
    assert abs(first[1][3] - last[60][3]) < 0.1 < last[1][0] - last[60][3]  # held-out loss, begun where the other ended
    commands.run(*arguments, "max_steps=60", "schedule.total_steps=60", "stop.time_budget_s=0.001", expect=75)
    status = json.loads((config.parent / "runs" / "second" / "status.json").read_text())
    assert (status["state"], status["reason"], status["step"]) == ("stopped", "time", 1)


@pytest.mark.full
def test_report_sums_the_run_up(undisturbed: Path):
    out, _ = commands.run("report", undisturbed)
    for expected in (
        "goodput",
        "unigram model",
        "memory off",
        "memory 24, as trained",
        "memory 96",
        "loss.png",
        "standard error",
    ):
        assert expected in out


def test_a_run_folder_of_another_config_is_refused_and_unharmed(undisturbed: Path, config: Path):
    before = commands.curve(undisturbed)
    message = commands.refused("train", config, "name=undisturbed", "seed=5", "model.d_ff=128")
    assert "seed        was 1, now 5" in message
    assert "model.d_ff  was 64, now 128" in message
    assert commands.curve(undisturbed) == before


def test_a_damaged_block_ends_the_run_with_one_message(tiny_dataset: Path, tmp_path: Path):
    dataset = tmp_path / "data"
    shutil.copytree(tiny_dataset, dataset)
    for shard in json.loads((dataset / "train" / "index.json").read_text())["shards"]:
        path = dataset / "train" / shard["name"]
        data = bytearray(path.read_bytes())
        for offset in shard["offset"]:  # every block: whichever is read first
            data[offset + 3000] ^= 1
        path.write_bytes(data)
    config = commands.write_config(tmp_path / "tiny.yaml", dataset, engine={"type": "plain", "precision": "fp32"})
    message = commands.refused("train", config, "--nproc", 2)
    assert ".tar: block" in message and "damaged" in message
    assert json.loads((tmp_path / "runs/run/status.json").read_text())["reason"] == "error"


def test_held_out_text_that_is_damaged_for_one_rank_ends_all_with_one_message(tiny_dataset: Path, tmp_path: Path):
    dataset = tmp_path / "data"
    shutil.copytree(tiny_dataset, dataset)
    shard = json.loads((dataset / "valid" / "index.json").read_text())["shards"][-1]
    path = dataset / "valid" / shard["name"]
    data = bytearray(path.read_bytes())
    data[shard["offset"][-1] + 100] ^= 1  # the last block: rank 1 reads it, rank 0 does not
    path.write_bytes(data)
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        dataset,
        engine={"type": "plain", "precision": "fp32"},
        wandb={"mode": "disabled"},
        max_steps=2,
        schedule={"type": "cosine", "warmup_steps": 1},
        eval={"max_tokens": None, "num_streams": 2, "seq_len": 64},
    )
    assert "damaged" in commands.refused("train", config, "--nproc", 2)
    status = json.loads((tmp_path / "runs/run/status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "error") and "damaged" in status["message"]


def test_on_a_full_disk_it_trains_on_and_saves_again_once_there_is_room(tiny_dataset: Path, tmp_path: Path):
    small = tmp_path / "small"
    with mount_small_disk(small, size="4m"):
        config = commands.write_config(
            tmp_path / "tiny.yaml",
            tiny_dataset,
            runs_dir=str(small),
            engine={"type": "plain", "precision": "fp32"},
            wandb={"mode": "disabled"},
            max_steps=100_000,
            checkpoint={"every_steps": 10, "keep": 2},
            eval={"every_steps": 100_000, "max_tokens": 2000},
        )
        run, ballast = small / "run", small / "ballast"
        process = commands.start("train", config, "--nproc", 2)
        commands.wait_for_step(run, 15, process)
        while not list_checkpoints(run / "checkpoints"):  # written behind the loop
            assert process.poll() is None
            time.sleep(0.05)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        out = commands.read_until(
            process, "will save again later", "metrics.jsonl: cannot be written", "status.json: cannot"
        )
        assert "No space left on device" in out
        kept = list_checkpoints(run / "checkpoints")
        assert kept
        verify_whole(kept[0])
        ballast.unlink()
        commands.read_until(process, "metrics.jsonl: can be written again")
        while list_checkpoints(run / "checkpoints")[0] <= kept[0]:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        commands.finish(process, expect=75)
        rows = commands.read_metrics(run)
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        assert rows[-1]["events/failed_saves"] >= 1
        assert verify_whole(list_checkpoints(run / "checkpoints")[0]).step == len(rows)
        assert not list((run / "checkpoints").glob(".tmp-*"))


def test_where_metrics_and_status_stay_unwritable_it_saves_and_leaves_to_be_run_again(
    tiny_dataset: Path, tmp_path: Path
):
    small = tmp_path / "small"
    with mount_small_disk(small, size="1m"):
        config = commands.write_config(
            tmp_path / "tiny.yaml",
            tiny_dataset,
            runs_dir=str(small),
            engine={"type": "plain", "precision": "fp32"},
            wandb={"mode": "disabled"},
            max_steps=100_000,
            checkpoint={"every_steps": 100_000},
            eval={"every_steps": 100_000, "max_tokens": 2000},
            stop={"unwritable_s": 1},
        )
        run, elsewhere, ballast = small / "run", tmp_path / "checkpoints", small / "ballast"
        run.mkdir()
        elsewhere.mkdir()
        (run / "checkpoints").symlink_to(elsewhere)
        process = commands.start("train", config, "--nproc", 2)
        commands.wait_for_step(run, 3, process)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        out, err = commands.finish(process, expect=75)
        assert "metrics.jsonl: cannot be written: No space left on device" in out
        assert "stopped at step" in out and "lines are lost" in out and "Traceback" not in err
        saved = verify_whole(list_checkpoints(elsewhere)[0])
        assert saved.step > max(row["step"] for row in commands.read_metrics(run))
        ballast.unlink()
        out, _ = commands.run("resume", run, f"max_steps={saved.step}", "schedule.total_steps=100000", "--nproc", 2)
        assert f"resuming from step {saved.step}" in out


@pytest.mark.full
def test_a_last_save_that_fails_ends_the_run_with_one_message(tiny_dataset: Path, tmp_path: Path):
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        tiny_dataset,
        engine={"type": "plain", "precision": "fp32"},
        wandb={"mode": "disabled"},
        max_steps=3,
        schedule={"type": "cosine", "warmup_steps": 1},
    )
    (tmp_path / "runs/run").mkdir(parents=True)
    with mount_small_disk(tmp_path / "runs/run/checkpoints", size="16k"):
        message = commands.refused("train", config, "--nproc", 2)
    assert "the checkpoint of step 3 could not be written" in message
    assert json.loads((tmp_path / "runs/run/status.json").read_text())["reason"] == "error"


@pytest.mark.full
def test_with_no_whole_checkpoint_left_nothing_is_trained_nor_touched(tiny_dataset: Path, tmp_path: Path):
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        tiny_dataset,
        engine={"type": "plain", "precision": "fp32"},
        wandb={"mode": "disabled"},
        checkpoint={"every_steps": 2, "keep": 2},
        max_steps=6,
        schedule={"type": "cosine", "warmup_steps": 1, "total_steps": 8},
    )
    commands.run("train", config, "--nproc", 2)
    run = tmp_path / "runs/run"
    for folder in list_checkpoints(run / "checkpoints"):
        file = folder / "rank-00001.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    metrics, checkpoints = (run / "metrics.jsonl").read_bytes(), sorted((run / "checkpoints").rglob("*"))
    message = commands.refused("resume", run, "max_steps=8", "--nproc", 2)
    assert "all checkpoints are damaged" in message and "rank-00001.safetensors" in message
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert sorted((run / "checkpoints").rglob("*")) == checkpoints


@pytest.mark.full
def test_losses_that_are_not_finite_end_the_run_with_advice(tiny_dataset: Path, tmp_path: Path):
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        tiny_dataset,
        engine={"type": "plain", "precision": "fp32"},
        optimizer={"lr": 1e30, "grad_clip": 0.0},
        stop={"max_nonfinite_steps": 3},
    )
    message = commands.refused("train", config, "--nproc", 2)
    assert "3 steps in a row" in message and "lower optimizer.lr" in message
    rows = commands.read_metrics(tmp_path / "runs/run")
    assert rows[-1]["events/skipped_updates"] == 3
