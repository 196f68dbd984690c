"""status, logs, stop, cancel and resume of a run on a real cluster."""

import time
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
import yaml
from commands import BIN, curve, write_config
from slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture
def xlpretrain(slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the command on the cluster, and return its output."""
    monkeypatch.chdir(tmp_path)
    slurm_cluster.env["WANDB_MODE"] = "disabled"

    def xlpretrain(*arguments: object, expect: int = 0) -> str:
        return slurm_cluster.run(BIN / "xlpretrain", *arguments, expect=expect)

    return xlpretrain


@pytest.fixture
def submitted(tmp_path: Path, tiny_dataset: Path) -> list[object]:
    """Arguments of `submit` for an endless run."""
    endless = {"name": "one", "max_steps": 100_000, "checkpoint": {"every_steps": 100_000}, "engine": {"type": "plain"}}
    config = write_config(tmp_path / "config.yaml", tiny_dataset, **endless, eval={"every_steps": 100_000})
    profile = tmp_path / "cluster.yaml"
    profile.write_text(
        yaml.safe_dump({"partition": "main", "nodes": 2, "time": "0:10:00", "health_check": {"enabled": False}})
    )
    return ["submit", config, "--cluster", profile]


def wait_for(says: Callable[[], str], text: str, timeout_s: float = 240) -> str:
    deadline = time.monotonic() + timeout_s
    while text not in (said := says()):
        assert time.monotonic() < deadline, f"{text!r} is not in\n{said}"
        time.sleep(0.5)
    return said


def wait_for_steps(run: Path, count: int) -> None:
    """Wait until this many more steps are logged."""
    deadline = time.monotonic() + 240
    known = len(commands.read_metrics(run))
    while len(commands.read_metrics(run)) < known + count:
        assert time.monotonic() < deadline, (run / "logs" / "job.log").read_text()
        time.sleep(0.2)


def test_a_queued_run_is_stopped_and_removed(slurm_cluster: SlurmCluster, xlpretrain, submitted):
    others = slurm_cluster.sbatch("sleep 1000", "--nodes=3", "--exclusive")
    slurm_cluster.wait_for(others, "RUNNING")
    xlpretrain(*submitted)
    run = Path("runs/one")
    wait_for(lambda: xlpretrain("status"), "PENDING (")
    assert "0/100,000" in xlpretrain("status")
    assert "2 nodes requested" in xlpretrain("status", run)
    assert "no job.log or rank-00000.log yet" in xlpretrain("logs", run, expect=2)
    assert "is queued (PENDING" in xlpretrain("resume", run, expect=2)
    assert "is queued" in xlpretrain("resume", run, "--here", expect=2)
    assert "will exit as soon as it starts" in xlpretrain("stop", run)
    assert "starts over: there is no checkpoint yet" in xlpretrain("cancel", run)
    assert "CANCELLED: stopped by the user" in xlpretrain("status")
    assert "has ended (CANCELLED" in xlpretrain("cancel", run, expect=2)
    assert slurm_cluster.run("squeue", "-h", "-o", "%i").split() == [others]


def test_a_run_is_watched_stopped_resumed_and_cancelled(slurm_cluster: SlurmCluster, xlpretrain, submitted):
    xlpretrain(*submitted)
    run = Path("runs/one")
    wait_for_steps(run, 10)
    seen = xlpretrain("status")
    assert "RUNNING  " in seen and "one" in seen and "/100,000" in seen
    first_host = slurm_cluster.run_on("node1", "hostname").strip()
    details = xlpretrain("status", run)
    for expected in (
        "RUNNING",
        "on node[1-2]",
        "tokens/s",
        " left",
        " s ago",
        "restarts",
        f"{first_host}, 2 ranks",
    ):
        assert expected in details, details
    assert "job.log, " in details and "rank-00001.log" in details
    logs = xlpretrain("logs", run)
    assert "ranks on node1, node2" in logs and "step" in logs
    xlpretrain("logs", run, "--rank", 1)
    assert "job" in xlpretrain("resume", run, expect=2), "refused while it runs"

    assert "will save and exit after its current step" in xlpretrain("stop", run)
    wait_for(lambda: xlpretrain("status"), "ended: stopped by the user")
    assert "it stays stopped until `xlpretrain resume runs/one`" in xlpretrain("status", run)
    stopped_at = commands.read_metrics(run)[-1]["step"]

    xlpretrain("resume", run, "--nodes", "1", "log.every_steps=2")
    assert not (run / "STOP").exists()
    wait_for_steps(run, 5)
    details = xlpretrain("status", run)
    assert ", 1 rank" in details
    assert f"  {stopped_at}  " in details, "the history shows from where it resumed"
    said = xlpretrain("cancel", run)
    assert "resumes from the checkpoint of step" in said, said
    assert int(said.split("of step ")[1].split()[0]) > stopped_at, "it saved when it was cancelled"
    time.sleep(2)
    assert slurm_cluster.run("squeue", "-h") == "", "nothing requeued it"
    assert "CANCELLED: stopped by the user" in xlpretrain("status")

    last = commands.read_metrics(run)[-1]["step"]
    xlpretrain("resume", run, f"max_steps={last + 20}", "log.every_steps=1", "checkpoint.every_steps=10")
    wait_for(lambda: xlpretrain("status"), "COMPLETED  ")
    assert f"{last + 20}/{last + 20}  100%" in xlpretrain("status")
    assert "already finished" in xlpretrain("resume", run)
    xlpretrain("resume", run, f"max_steps={last + 25}", "--nproc", 1)
    assert f"{last + 25}/{last + 25}  100%" in xlpretrain("status")
    assert max(curve(run)) == last + 25
