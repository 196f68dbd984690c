"""Small runs on a test cluster: submitted, watched, and interfered with."""

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
    """What a user has on a cluster: a folder with a config, and a profile that asks for two ranks on a node.

    xlpretrain: the command, and the interpreter that ranks run, if it is not this one.
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
        """The folder of the run "r"."""
        return self.folder / "runs" / "r"

    def __call__(
        self, overrides: dict[str, object] | None = None, *options: object, expect: int = 0, **profile: object
    ) -> list[str]:
        """Submit: the ids of the jobs, or, if it is to fail, what it said. No health check unless told otherwise."""
        said = self.submit(overrides, *options, expect=expect, **profile)
        jobs = [line.partition(":")[0].removeprefix("job ") for line in said.splitlines() if line.startswith("job ")]
        return jobs if expect == 0 else [said]

    def submit(
        self, overrides: dict[str, object] | None = None, *options: object, expect: int = 0, **profile: object
    ) -> str:
        """Submit: what it said."""
        site = {"tasks_per_node": 2, "cpus_per_task": 1, "time": "0:10:00", "health_check": {"enabled": False}}
        (self.folder / "site.yaml").write_text(yaml.safe_dump({**site, **profile}))
        changes = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
        config, cluster = self.folder / "config.yaml", self.folder / "site.yaml"
        return self.xlpretrain("submit", config, *changes, "--cluster", cluster, *options, expect=expect)

    def goes_on(self, job: str, *, start: int = 2) -> list[AttemptStart | AttemptEnd]:
        """Wait until a run without end trains on after so many starts, and stop it; what was written down of them."""
        began = wait_for_start(self.run, start)
        before = max([began.step, *(row["step"] for row in read_metrics(self.run))])
        wait_for_step(self.run, before + 20)
        self.xlpretrain("stop", self.run)
        return finish(self.cluster, job, self.run, "FAILED")

    def xlpretrain(self, *arguments: object, expect: int = 0) -> str:
        """What the command says."""
        return self.cluster.run(*self._xlpretrain, *arguments, expect=expect)


def finish(cluster: SlurmCluster, job: str, run: Path, state: str = "COMPLETED") -> list[AttemptStart | AttemptEnd]:
    """Wait for a job's end, which is to be `state`; what was written down of its starts."""
    wait_until(lambda: cluster.job(job)["JobState"] in _OVER, 240, lambda: f"{cluster.job(job)}\n{log(run)}")
    assert cluster.job(job)["JobState"] == state, log(run)
    return SlurmFolder.of(RunDir(run)).read_events()


def starts(events: Sequence[AttemptStart | AttemptEnd]) -> list[AttemptStart]:
    return [event for event in events if isinstance(event, AttemptStart)]


def ends(events: Sequence[AttemptStart | AttemptEnd]) -> list[AttemptEnd]:
    return [event for event in events if isinstance(event, AttemptEnd)]


def wait_for_step(run: Path, step: int) -> None:
    """Until it is logged."""
    wait_until(lambda: any(row["step"] >= step for row in read_metrics(run)), 240, lambda: log(run))


def wait_for_start(run: Path, number: int) -> AttemptStart:
    """Until a run has been started so often."""
    folder = SlurmFolder.of(RunDir(run))
    wait_until(lambda: len(starts(folder.read_events())) >= number, 240, lambda: log(run))
    return starts(folder.read_events())[number - 1]


def each_step_once(run: Path) -> int:
    """Checks that, and returns how many steps were trained twice, by the last row of the metrics."""
    steps = [row["step"] for row in read_metrics(run)]
    assert steps == list(range(1, len(steps) + 1))
    return int(read_metrics(run)[-1]["goodput/steps_redone"])


def log(run: Path) -> str:
    """What a run's job and its rank 0 said."""
    return "\n".join(
        path.read_text() for path in (run / "logs" / "job.log", run / "logs" / "rank-00000.log") if path.exists()
    )


def status(run: Path) -> Status:
    told = RunDir(run).read_status()
    assert told is not None
    return told


def ranks(cluster: SlurmCluster) -> dict[tuple[str, int], psutil.Process]:
    """The processes of ranks by their node and number."""
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
    """An interpreter before which a line of bash runs if a condition of bash is met; $* is what it was to run."""
    path.write_text(f'#!/bin/bash\nif {when}; then {then}; fi\nexec {shlex.quote(python)} "$@"\n')
    path.chmod(0o755)
    return path
