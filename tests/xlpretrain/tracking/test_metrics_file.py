import json
from pathlib import Path

import pytest
import torch

from xlpretrain.tracking.metrics_file import MetricsFile, read_metrics
from xlpretrain.tracking.plots import plot_losses
from xlpretrain.train.throughput import StepTimer, peak_flops, peak_memory_bytes


def test_numbers_keep_every_bit(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    value = 0.1 + 1e-16 * 3
    file.append({"step": 1, "train/loss": value})
    file.close()
    assert next(read_metrics(file.path))["train/loss"] == value


def test_bad_numbers_are_null_and_the_line_stays_json(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1, "train/loss": float("nan"), "train/grad_norm": float("inf")})
    file.close()
    assert next(read_metrics(file.path)) == {"step": 1, "train/loss": None, "train/grad_norm": None}


def test_cutting_back_keeps_what_is_at_or_before_the_step_and_drops_a_torn_line(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (10, 20, 30):
        file.append({"step": step})
    with file.path.open("a") as torn:
        torn.write('{"step": 4')
    rows = file.truncate_to_step(20)
    assert [row["step"] for row in rows] == [10, 20, 30]
    file.append({"step": 21})
    file.close()
    assert [row["step"] for row in read_metrics(file.path)] == [10, 20, 21]
    assert list(tmp_path.iterdir()) == [file.path]


def test_cutting_back_a_file_that_is_not_there_makes_an_empty_one(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.truncate_to_step(0) == []
    file.close()
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_lap_gives_rates_per_step_and_begins_anew():
    watch = StepTimer()
    watch.steps, watch.data_wait_s = 4, 0.2
    lap = watch.lap(tokens_per_step=100, flops_per_token=5.0, peak_flops=1e6)
    assert lap["time/data_wait_s"] == pytest.approx(0.05)
    assert lap["time/tokens_per_second"] == pytest.approx(100 / lap["time/step_s"])
    assert lap["time/mfu"] == pytest.approx(lap["time/tokens_per_second"] * 5e-6)
    assert (watch.steps, watch.data_wait_s) == (0, 0.0)


def test_peaks_are_of_a_plausible_size():
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e15
    assert 1e7 < peak_memory_bytes(torch.device("cpu")) < 1e13


def test_the_plot_is_a_png_also_with_gaps(tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "train/loss": 9.0 / s, "train/lr": 1e-3} for s in (1, 2, 3)] + [{"step": 3, "valid/loss": 4.0}]
    metrics.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"step": 4, "train/loss": None, "train/lr": 0}]))
    plot_losses(metrics, tmp_path / "loss.png", title="x")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def test_without_metrics_there_is_no_plot(tmp_path: Path):
    plot_losses(tmp_path / "none.jsonl", tmp_path / "loss.png", title="x")
    assert not (tmp_path / "loss.png").exists()
