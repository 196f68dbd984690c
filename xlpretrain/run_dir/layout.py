"""The folder of a run: what lies where, and what the outside may read of it while it goes on. Torch-free.

config.yaml      the resolved configuration; what a resume must agree with
changes.jsonl    what resumes changed in it: one line for each attempt that changed anything
provenance.json  where it came from: its id, digests of its data and weights (origin.py), host, versions
metrics.jsonl    one line per logged step
status.json      what it is doing, or why and where it ended
checkpoints/     step-00000100/ ...
tokenizer/       what its texts were encoded by
lease/           which start of the run may write here (lease.py)
logs/            what launcher and ranks said (rank_log.py); stacks of ranks that hung (watchdog.py)
loss.png  wandb/  tensorboard/
predictions.csv  metrics.json  confusion.png    of a classifier, on its held-out texts
STOP             the user's wish to save and end; `xlpretrain resume` removes it
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from xlpretrain.errors import LaunchError
from xlpretrain.file_system.atomic_files import atomic_write, atomic_writer, fsync

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""The names that a run, and so its folder, may have: they go into job scripts and W&B."""
NAME_RULE = "begin with a letter or a digit, and have only letters (a-z, A-Z), digits and . _ -"

State = Literal["running", "finished", "stopped", "failed"]
Reason = Literal["", "finished", "signal", "time", "user", "disk", "error", "crash"]


@dataclass(frozen=True)
class Status:
    """The content of `status.json`. `reason` tells why a run is no longer running; `step` counts completed ones.

    goodput: what became of the run's time until `updated_at`, by the names that it has in the metrics.
    told: the last step that each tracker, by its type, has safely been told of; None if an earlier version wrote this.
    """

    state: State
    reason: Reason = ""
    step: int = 0
    max_steps: int = 0
    message: str = ""
    launch_id: str = ""
    world_size: int = 1
    host: str = ""
    pid: int = 0
    updated_at: float = 0.0
    goodput: dict[str, float] = field(default_factory=dict)
    told: dict[str, int] | None = None


@dataclass(frozen=True)
class RunDir:
    """Paths and small files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def changes(self) -> Path:
        """Keys of the configuration that attempts changed, a line for each such attempt."""
        return self.path / "changes.jsonl"

    @property
    def provenance(self) -> Path:
        """The origin of the run."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        """The current state of the run."""
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def plot(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def predictions(self) -> Path:
        """A classifier's prediction for each of its held-out texts."""
        return self.path / "predictions.csv"

    @property
    def figures(self) -> Path:
        """The metrics of these predictions."""
        return self.path / "metrics.json"

    @property
    def confusion(self) -> Path:
        """The confusion matrix of the labels."""
        return self.path / "confusion.png"

    @property
    def tokenizer(self) -> Path:
        """The folder of the run's tokenizer; runs of earlier versions have it beside their data only."""
        return self.path / "tokenizer"

    @property
    def lease(self) -> Path:
        """The folder of leases: which process may write to the run."""
        return self.path / "lease"

    @property
    def logs(self) -> Path:
        """The folder of logs, and of stacks of ranks that hung."""
        return self.path / "logs"

    @property
    def job_log(self) -> Path:
        """The log of the launcher, or of a job and its supervisor."""
        return self.logs / "job.log"

    def rank_log(self, rank: int) -> Path:
        """The log of a rank."""
        return self.logs / f"rank-{rank:05d}.log"

    @property
    def stop_file(self) -> Path:
        """While it exists, the run saves and ends, and nothing restarts it."""
        return self.path / "STOP"

    def exists(self) -> bool:
        """True if a run was started here."""
        return self.config.is_file()

    def refuse_others(self) -> None:
        """Raise `LaunchError` if files lie here that a new run would write over, and no run was begun or submitted."""
        begun = (self.config, self.provenance, self.lease, self.path / "slurm")
        written = (self.metrics, self.plot, self.predictions, self.figures, self.confusion)
        found = [path for path in written if path.exists()]
        if found and not any(path.exists() for path in begun):
            raise LaunchError(
                f"{found[0]}: lies there already, and is not of a run; choose another name, or move it away"
            )

    def create(self, *, config: str, provenance: Mapping[str, Any], fence: Callable[[], None] = lambda: None) -> None:
        """Make the folder. The configuration is written last: a folder without one was never begun."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            atomic_write(self.provenance, json.dumps(provenance, indent=2) + "\n", fence=fence)
            atomic_write(self.config, config, fence=fence)
        except OSError as error:
            raise LaunchError(f"{self.path}: the run folder cannot be made: {error.strerror}") from None

    def record_changes(
        self, changes: Mapping[str, tuple[Any, Any]], *, step: int, fence: Callable[[], None] = lambda: None
    ) -> None:
        """Append a line to `changes.jsonl`: keys with their values before and now, and the newest checkpoint's step.

        Raises `LaunchError`.
        """
        line = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, "changed": changes}
        try:
            before = self.changes.read_text(encoding="utf-8") if self.changes.exists() else ""
            atomic_write(self.changes, f"{before}{json.dumps(line)}\n", fence=fence)
        except OSError as error:
            raise LaunchError(f"{self.changes}: cannot be written: {error.strerror}") from None

    def keep_tokenizer(self, name: str, model: bytes) -> None:
        """Put a tokenizer's file there, if it is not. Raises `LaunchError`."""
        if (self.tokenizer / name).exists():
            return
        try:
            self.tokenizer.mkdir(parents=True, exist_ok=True)
            with atomic_writer(self.tokenizer / name) as temporary:
                temporary.write_bytes(model)
                fsync(temporary)
        except OSError as error:
            raise LaunchError(f"{self.tokenizer}: the tokenizer cannot be kept there: {error.strerror}") from None

    def check_exists(self) -> RunDir:
        """This run folder. Raises `LaunchError` if no run was started here."""
        if not self.exists():
            raise self.missing()
        return self

    def missing(self) -> LaunchError:
        """The error for a folder without a run."""
        return LaunchError(f"{self.path}: not a run folder (it has no config.yaml); name one such as runs/quickstart")

    def refuse_if_read_only(self) -> None:
        """Raise `LaunchError` if this process may not write here, or not make the folder."""
        above = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        for place in (above, self.lease, self.checkpoints):
            if place.exists() and not os.access(place, os.W_OK | os.X_OK):
                raise LaunchError(
                    f"{place}: may only be read here, and a run writes to its folder; make it writable, or copy the run"
                    f" ({self.path}) and resume the copy. `eval`, `report`, `export` and `status` only read"
                )

    def read_provenance(self) -> dict[str, Any]:
        """The provenance that `create` stored."""
        data: dict[str, Any] = json.loads(self.provenance.read_text(encoding="utf-8"))
        return data

    def read_status(self) -> Status | None:
        """The status, or None if there is none yet."""
        try:
            return Status(**json.loads(self.status.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write_status(self, status: Status, *, fence: Callable[[], None] = lambda: None) -> None:
        """Replace the status. Raises OSError, and what `fence` raises just before."""
        stamped = {**asdict(status), "host": os.uname().nodename, "pid": os.getpid(), "updated_at": time.time()}
        atomic_write(self.status, json.dumps(stamped, indent=2) + "\n", fence=fence)


def is_resolved(config: Path) -> bool:
    """Check whether a config is one that a run or its submission was given, rather than one that a user wrote."""
    ours = (RunDir(config.parent).provenance, config.parent / "cluster.yaml")
    return config.name == "config.yaml" and any(path.is_file() for path in ours)
