"""Alerts of whole runs: killed, hung, stopped and spiking ones. Modules: run_dir/alerts.py, launcher/local/train.py."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import commands
import psutil
import pytest
from webhook_server import Manner, WebhookServer, receiving

pytestmark = pytest.mark.full
HOOK = "TEAM_WEBHOOK"
TIMEOUT_S = 15


@pytest.fixture(scope="module")
def config(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.write_config(
        tmp_path_factory.mktemp("alerted") / "tiny.yaml",
        tiny_dataset,
        engine={"type": "plain", "precision": "fp32"},
        trackers=[],
        alerts={"webhook": f"${HOOK}"},
    )


@contextlib.contextmanager
def hook(manner: Manner = "well") -> Iterator[WebhookServer]:
    """A server, and its URL in the environment of commands."""
    with receiving(manner) as server:
        commands.EXTRA |= {HOOK: server.url, "no_proxy": "127.0.0.1"}
        try:
            yield server
        finally:
            del commands.EXTRA[HOOK], commands.EXTRA["no_proxy"]


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks of a launcher, in their order."""
    ranks = [child for child in psutil.Process(process.pid).children() if "xlpretrain" in child.cmdline()]
    return sorted(ranks, key=lambda rank: int(rank.environ()["RANK"]))


def assert_secret_is_nowhere(folder: Path, *outputs: str) -> None:
    """Neither a file of the run nor the output of a command has any part of the webhook's path."""
    for text in outputs:
        assert "xyzzy" not in text
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "status.json", "provenance.json"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert b"xyzzy" not in path.read_bytes(), path


@pytest.fixture(scope="module")
def unalerted(config: Path) -> dict[int, tuple]:
    commands.run("train", config, "name=unalerted", "alerts.webhook=null", "--nproc", 2)
    return commands.curve(config.parent / "runs" / "unalerted")


def test_a_killed_rank_a_stop_and_the_end_are_told_once_each(config: Path, unalerted: dict[int, tuple]):
    folder = config.parent / "runs" / "killed"
    with hook() as server:
        tracked = ("name=killed", "trackers=[{type: wandb, mode: offline}]")
        process = commands.start("train", config, *tracked, "--nproc", 2, "--max-restarts", 1)
        commands.wait_for_step(folder, 25, process)
        ranks_of(process)[1].kill()
        server.wait_for(3)
        commands.wait_for_step(folder, 30, process)
        commands.run("stop", folder)
        out, err = commands.finish(process, expect=75)
        more, _ = commands.run("resume", folder, "--nproc", 2)
    assert server.events() == ["start", "failure", "start", "stop", "start", "finish"]
    first, failure, second, stop, _, finish = server.alerts
    assert first["text"].startswith("killed started at step 0 on ") and first["message"] == "on 2 ranks, to step 60"
    assert "was killed by SIGKILL (possibly out of memory)" in failure["message"] and failure["restarting"]
    assert failure["step"] >= 25 and second["step"] == 20
    assert (stop["message"], stop["restarting"]) == ("by `xlpretrain stop`", False)
    assert (finish["step"], finish["url"]) == (60, None)
    assert commands.curve(folder) == unalerted
    assert_secret_is_nowhere(folder, out, err, more, *commands.run("status", folder))


def test_a_hung_rank_is_told_once_by_the_launcher(config: Path):
    folder = config.parent / "runs" / "hung"
    with hook() as server:
        process = commands.start("train", config, "name=hung", f"watchdog.timeout_s={TIMEOUT_S}", "--nproc", 2)
        commands.wait_for_step(folder, 25, process)
        ranks_of(process)[1].suspend()
        commands.finish(process, expect=1)
    assert server.events() == ["start", "stall"]
    assert server.alerts[1]["step"] >= 25 and not server.alerts[1]["restarting"]


def test_a_rank_without_a_launcher_tells_spikes_errors_and_its_end(config: Path):
    spikes = ["spike.threshold=1.0e-6", "spike.window=2", "spike.max_rollbacks=1", "checkpoint.every_steps=2"]
    with hook() as server:
        alone = ("-m", "xlpretrain", config)
        commands.run(*alone, "name=spikes", *spikes, program="python", expect=2)
        commands.run(*alone, "name=alone", "max_steps=6", program="python")
        commands.run(*alone, "name=alone", "max_steps=60", "stop.time_budget_s=0.01", program="python", expect=75)
    assert server.events() == ["start", "spike", "failure", "start", "finish", "start", "stop"]
    spike, failure = server.alerts[1:3]
    assert spike["message"].endswith("; rollback 1 of at most 1") and spike["step"] > 2
    assert failure["message"].startswith("the loss spikes at step ")
    assert server.alerts[-1]["message"] == "stop.time_budget_s is used up"


@pytest.mark.parametrize("manner", ["silent", "error"])
def test_a_bad_webhook_costs_a_run_nothing_but_a_warning(config: Path, unalerted: dict[int, tuple], manner: Manner):
    with hook(manner) as server:
        missing = "alerts.command=[no-such-program]"
        _, err = commands.run("train", config, f"name=bad-{manner}", missing, "--nproc", 2)
    assert sorted(server.events()) == ["finish", "start"]
    for way in ("webhook", "command"):
        told = [
            line for line in err.splitlines() if line.startswith(f"warning: alerts.{way}: an alert could not be sent")
        ]
        assert len(told) == 2, "one of rank 0, one of the launcher"
    assert "xyzzy" not in err
    assert commands.curve(config.parent / "runs" / f"bad-{manner}") == unalerted


def test_no_process_is_left_by_a_command_that_hangs(config: Path):
    marker = "98765.25"
    with hook():
        command = f"alerts={{command: [sleep, '{marker}'], events: [finish]}}"
        _, err = commands.run("train", config, "name=hanging", "max_steps=6", command, "--nproc", 1)
    assert "alerts.command: an alert could not be sent: sleep did not end within 9 s and was killed" in err
    assert not [process for process in psutil.process_iter(["cmdline"]) if marker in (process.info["cmdline"] or [])]
