"""The command `xlpretrain plan`: what it prints, its errors, and the plan beside a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli.actions import plan as action
from launcher.slurm.profile import ClusterConfig
from xlpretrain.config import run_config
from xlpretrain.errors import ConfigError, LaunchError
from xlpretrain.planning import run_plan

TINY = ["model.num_layers=1", "model.d_model=32", "model.num_heads=2", "model.d_ff=64", "data.train=nowhere/train"]
CONFIG = Path("configs/bert_small.yaml")
OPTIONS = {"device": "h100", "num_devices": 16, "per_node": 8, "vocab_size": 500, "disk_rate": 2.0, "price": 3.0}


def plan(capsys: pytest.CaptureFixture[str], *overrides: str, **options: object) -> str:
    given = {**OPTIONS, "against": None, "to_json": False, **options}
    action.plan(CONFIG, [*TINY, *overrides], **given)
    return capsys.readouterr().out


def a_run(folder: Path, rows: list[dict[str, float]]) -> Path:
    """A run folder with logged steps."""
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG.read_text())
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i, **row}) + "\n" for i, row in enumerate(rows)))
    return folder


def test_the_report_has_all_parts_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = plan(capsys)
    for text in (
        "bert_small: 31,510 parameters (embedding",
        "16 x H100 SXM in 2 nodes, ZeRO 1, bf16; a step: 8,192 tokens, 1 micro-batch a rank",
        "memory of a rank",
        "micro_batch_size=32 fits; 4: a rank has no more samples",
        "time of a step",
        "bound by ",
        "500 steps, 4.1 million tokens",
        "MB, 0.0 s to write behind training at 2 GB/s",
        "hours of a device",
        "dataset not found: nowhere/train",
    ):
        assert text in out, out
    table = [line for line in out.splitlines() if line.startswith(("memory of", "peak, of", "sum"))]
    assert max(map(len, table)) <= 80
    assert "\x1b" not in out


def test_json_has_the_numbers(capsys):
    found = json.loads(plan(capsys, to_json=True))
    assert found["devices"] == 16
    assert found["step_s"] == pytest.approx(sum(found["step_parts_s"].values()))
    assert found["tokens_per_second"] == pytest.approx(8192 / found["step_s"])
    assert found["memory_peak_bytes"] == sum(found["memory_bytes"].values())
    assert found["price"] == pytest.approx(3.0 * 16 * found["hours"])
    assert found["assumed"] == ["dataset not found: nowhere/train"]


def test_a_plan_is_set_against_the_medians_of_a_run(capsys, tmp_path):
    rows = [{"time/step_s": s, "time/tokens_per_second": 100 / s, "memory/peak_bytes": 5e9} for s in (9, 2, 2, 2)]
    run = a_run(tmp_path / "run", [*rows, {"valid/loss": 1.0}])
    out = plan(capsys, against=run)
    assert f"Against {run}" in out
    (line,) = [line for line in out.splitlines() if line.startswith("time of a step ") and "2.00 s" in line]
    assert "0.00" in line
    assert "peak memory of rank 0" in out
    assert json.loads(plan(capsys, against=run, to_json=True))["measured"] == {
        "step_s": 2,
        "tokens_per_second": 50,
        "peak_bytes": 5e9,
    }


def test_a_run_without_steps_is_refused(capsys, tmp_path):
    with pytest.raises(LaunchError, match="has logged no step"):
        plan(capsys, against=a_run(tmp_path / "run", []))
    with pytest.raises(LaunchError):
        plan(capsys, against=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h1000"}, "--device: must be one of a100"),
        ({"num_devices": 12}, "--devices: must be a multiple of --per-node, 8"),
        ({"num_devices": 128}, "--devices: must be at most global_batch_size, 64"),
    ],
)
def test_bad_options_say_what_is_expected(capsys, options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        plan(capsys, **options)


def test_a_wrong_config_is_refused_as_in_train(capsys):
    with pytest.raises(ConfigError, match=r"objective\.seq_len"):
        plan(capsys, "objective.seq_len=-1")


def test_a_submission_is_described_if_the_profile_names_its_gpus():
    config = run_config.load(CONFIG, TINY)
    named = ClusterConfig(gres="gpu:h100:4", nodes="2")
    first, *_ = action.describe_submission(config, named)
    assert "8 x H100 SXM in 2 nodes" in first
    (line,) = action.describe_submission(config, ClusterConfig(gpus_per_node=8))
    assert line.startswith("no plan: the site profile names no GPU of a100, ")
    assert action.describe_submission(config, ClusterConfig(nodes="2")) == []


def test_a_plan_that_fails_never_keeps_a_run_from_starting(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("torn")

    monkeypatch.setattr(run_plan, "work_of", fails)
    lines = action.describe_submission(run_config.load(CONFIG, TINY), ClusterConfig(gres="gpu:h100:4"))
    assert lines == ["no plan: RuntimeError: torn"]
