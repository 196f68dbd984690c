"""W&B where its package is not installed."""

import sys
from pathlib import Path

import pytest

from xlpretrain.tracking.trackers import WandbConfig, WandbTracker


@pytest.mark.parametrize(
    ("mode", "environment", "lines"),
    [
        ("auto", {}, 1),
        ("online", {}, 1),
        ("disabled", {}, 0),
        ("auto", {"WANDB_MODE": "disabled"}, 0),
        ("auto", {"WANDB_DISABLED": "true"}, 0),
    ],
)
def test_a_run_goes_on_without_wandb_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, mode: str, environment: dict, lines: int
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = WandbTracker(
        WandbConfig(mode=mode),  # type: ignore[arg-type]
        folder=tmp_path, run_id="id", name="name", run_config={},
    )  # fmt: skip
    tracker.log({"step": 1, "train/loss": 1.0})
    tracker.close()
    assert caplog.messages == lines * [
        'logging to W&B needs wandb: pip install "xlpretrain[wandb]"; the run goes on without it'
    ]
    assert not list(tmp_path.iterdir())
