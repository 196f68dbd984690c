"""Submit, watch and disturb small runs on a test cluster."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml
from commands import BIN, read_metrics, write_config
from slurm_cluster import SlurmCluster, wait_until

from launcher.slurm.records import AttemptEnd, AttemptStart, SlurmFolder
from xlpretrain.run_dir.layout import RunDir, Status

LONG = {"max_steps": 100_000, "checkpoint.every_steps": 100_000, "eval.every_steps": 100_000}
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Site:
    """A user's folder on a cluster, with a config and a profile that requests two ranks on a node.

    xlpretrain: the command, and the interpreter of ranks if it is not this one.
    """

    def __init__(self, cluster: SlurmCluster, folder: Path, dataset: Path, *, python: Sequence[object] = ()):
        self.cluster, self.folder = cluster, folder
        self._xlpretrain = (
            [*python, "-c", "from launcher.cli.main import main; main()"] if python else [BIN / "xlpretrain"]
        )
        cluster.env["WANDB_MODE"] = "disabled"
        write_config(folder / "config.yaml", dataset, name="r", engine={"type": "plain"}, runs_dir="runs")

    @property
    def run(self) -> Path:
        """Folder of the run "r"."""
        return self.folder / "runs" / "r"

    def __call__(
        self, overrides: dict[str, object] | None = None, *options: object, expect: int = 0, **profile: object
    ) -> list[str]:
        """Submit runs. Returns the job ids, or the output if it must fail. Without a health check by default."""
        said = self.submit(overrides, *options, expect=expect, **profile)
        jobs = [line.partition(":")[0].removeprefix("job ") for line in said.splitlines() if line.startswith("job ")]
        return jobs if expect == 0 else [said]

    def submit(
        self, overrides: dict[str, object] | None = None, *options: object, expect: int = 0, **profile: object
    ) -> str:
        """Submit runs. Returns the output."""
        site = {"tasks_per_node": 2, "cpus_per_task": 1, "time": "0:10:00", "health_check": {"enabled": False}}
        (self.folder / "site.yaml").write_text(yaml.safe_dump({**site, **profile}))
        changes = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
        config, cluster = self.folder / "config.yaml", self.folder / "site.yaml"
        return self.xlpretrain("submit", config, *changes, "--cluster", cluster, *options, expect=expect)

    def goes_on(self, job: str, *, start: int = 2) -> list[AttemptStart | AttemptEnd]:
        """Wait until an endless run trains after this many attempts, and stop it. Returns the recorded events."""
        began = wait_for_start(self.run, start)
        before = max([began.step, *(row["step"] for row in read_metrics(self.run))])
        wait_for_step(self.run, before + 20)
        self.xlpretrain("stop", self.run)
        return finish(self.cluster, job, self.run, "FAILED")

    def xlpretrain(self, *arguments: object, expect: int = 0) -> str:
        """Output of the command."""
        return self.cluster.run(*self._xlpretrain, *arguments, expect=expect)


def finish(cluster: SlurmCluster, job: str, run: Path, state: str = "COMPLETED") -> list[AttemptStart | AttemptEnd]:
    """Wait until a job ends with `state`. Returns the recorded events."""
    wait_until(lambda: cluster.job(job)["JobState"] in _OVER, 240, lambda: f"{cluster.job(job)}\n{log(run)}")
    assert cluster.job(job)["JobState"] == state, log(run)
    return SlurmFolder.of(RunDir(run)).read_events()


def starts(events: Sequence[AttemptStart | AttemptEnd]) -> list[AttemptStart]:
    return [event for event in events if isinstance(event, AttemptStart)]


def ends(events: Sequence[AttemptStart | AttemptEnd]) -> list[AttemptEnd]:
    return [event for event in events if isinstance(event, AttemptEnd)]


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a text is logged."""
    wait_until(lambda: any(row["step"] >= step for row in read_metrics(run)), 240, lambda: log(run))


def wait_for_start(run: Path, number: int) -> AttemptStart:
    """Wait until a run has made this many attempts."""
    folder = SlurmFolder.of(RunDir(run))
    wait_until(lambda: len(starts(folder.read_events())) >= number, 240, lambda: log(run))
    return starts(folder.read_events())[number - 1]


def each_step_once(run: Path) -> int:
    """Check the curve, and return the number of redone steps from the last row of the metrics."""
    steps = [row["step"] for row in read_metrics(run)]
    assert steps == list(range(1, len(steps) + 1))
    return int(read_metrics(run)[-1]["goodput/steps_redone"])


def log(run: Path) -> str:
    """Logs of a run's job and rank 0."""
    return "\n".join(
        path.read_text() for path in (run / "logs" / "job.log", run / "logs" / "rank-00000.log") if path.exists()
    )


def status(run: Path) -> Status:
    told = RunDir(run).read_status()
    assert told is not None
    return told


def ranks(cluster: SlurmCluster) -> dict[tuple[str, int], psutil.Process]:
    """Processes of ranks by node and rank."""
    found = {}
    for process in cluster.processes():
        try:
            if "launcher.slurm.job.rank" in (command := process.cmdline()) and "srun" not in command[0]:
                env = process.environ()
                found[env["SLURMD_NODENAME"], int(env["SLURM_PROCID"])] = process
        except (psutil.Error, KeyError):
            continue
    return found


def sick_python(path: Path, *, when: str, then: str = "echo boom >&2; exit 3", python: str = sys.executable) -> Path:
    """Make an interpreter that runs a bash line first if a bash condition holds; $* are its arguments."""
    path.write_text(f'#!/bin/bash\nif {when}; then {then}; fi\nexec {shlex.quote(python)} "$@"\n')
    path.chmod(0o755)
    return path
