"""Runs that are stopped and killed before their end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import commands


def disturb(config: Path, name: str, *overrides: str) -> Path:
    """Stop a run by SIGTERM and resume it; then kill its ranks, so that its launcher restarts them."""
    folder = config.parent / "runs" / name
    arguments = ("train", config, f"name={name}", *overrides, "--nproc", 2)
    process = commands.start(*arguments)
    commands.wait_for_step(folder, 10, process)
    process.send_signal(signal.SIGTERM)
    out, err = commands.finish(process, expect=75)
    assert err == ""
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "signal")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{status['step']:08d}"]

    process = commands.start("resume", folder, "--nproc", 2, "--max-restarts", 1)
    commands.wait_for_step(folder, 45, process)
    commands.kill_ranks(process)
    assert max(row["step"] for row in commands.read_metrics(folder)) < 60, "the run finished before it was killed"
    out, err = commands.finish(process, expect=0)
    assert out.count("resuming from step") == 2
    assert "restarting (0 restarts left)" in err
    goodput = json.loads((folder / "status.json").read_text())["goodput"]
    assert goodput["goodput/restarts"] == 2
    assert goodput["goodput/steps_redone"] >= 1, "steps from 40 on were lost"
    assert [path.name for path in (folder / "lease").iterdir()] == ["00000003"]
    return folder
