"""The folder of a run: its layout, and the files that other processes may read while it is running. Torch-free.

config.yaml      resolved config; a resume must match it
changes.jsonl    config changes: one line for each attempt that changed anything
provenance.json  the run's id, digests of its data and initial weights (origin.py), host, versions, a fork's parent
metrics.jsonl    one line per logged step
status.json      current state, or why and at which step the run ended
checkpoints/     step-00000100/ ...
tokenizer/       the tokenizer of its data
lease/           the attempt that owns the folder (lease.py)
logs/            output of launcher and ranks (rank_log.py); stacks of hung ranks (watchdog.py)
profiles/        traces of profiled steps: step-00000100-rank-00000.json.gz ...
loss.png  wandb/  tensorboard/
predictions.csv  metrics.json  confusion.png    a classifier's results on its held-out texts
STOP             request to save and exit; `xlpretrain resume` removes it
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from xlpretrain.errors import LaunchError
from xlpretrain.file_system.atomic_files import atomic_write, atomic_writer, fsync

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Pattern of run names. They are also folder names, and appear in job scripts and W&B."""
NAME_RULE = "start with a letter or a digit, and contain only letters (a-z, A-Z), digits and . _ -"
_PROFILE = re.compile(r"step-(\d+)-rank-(\d+)\.json\.gz")

State = Literal["running", "finished", "stopped", "failed"]
Reason = Literal["", "finished", "signal", "time", "user", "disk", "error", "crash"]


@dataclass(frozen=True)
class Status:
    """Content of `status.json`. `reason`: why the run is no longer running; `step`: completed steps.

    goodput: accounting of the run's time until `updated_at`, by metric name.
    told: the last step that each tracker, by type, has safely received; None if an earlier version wrote the file.
    url: page of the run in a tracker; empty if unknown.
    straggler: the rank for which the others wait, its host, and for how long; empty if none is late.
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
    url: str = ""
    straggler: str = ""


FORKED_FROM = "forked_from"
"""Key of the provenance of a fork."""


@dataclass(frozen=True)
class Branch:
    """The parent of a forked run.

    run: the parent's folder when the run was forked. id: the parent's id. step: of the checkpoint that the run began
    from. checkpoint: SHA-256 of its manifest. changed: config keys with the parent's and the fork's value.
    """

    run: str
    id: str
    step: int
    checkpoint: str
    changed: Mapping[str, tuple[Any, Any]]

    @property
    def place(self) -> str:
        """The parent and the step, in short: `trunk, step 300`."""
        return f"{Path(self.run).name}, step {self.step:,}"

    def describe(self) -> str:
        """The parent, the step and the changes, in one line."""
        changes = "; ".join(f"{key}: {before!r} -> {now!r}" for key, (before, now) in self.changed.items())
        return f"{self.run}, step {self.step:,}; {changes or 'nothing changed'}"

    def to_provenance(self) -> dict[str, Any]:
        """The entry of the provenance."""
        return {FORKED_FROM: asdict(self)}


def branch_of(provenance: Mapping[str, Any]) -> Branch | None:
    """The parent that a provenance names; None for a run that is no fork."""
    found = provenance.get(FORKED_FROM)
    try:
        return None if found is None else Branch(**found)
    except TypeError:  # written by another version
        return None


@dataclass(frozen=True)
class RunDir:
    """Paths and small files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved config."""
        return self.path / "config.yaml"

    @property
    def changes(self) -> Path:
        """Config changes, one line for each attempt that made any."""
        return self.path / "changes.jsonl"

    @property
    def provenance(self) -> Path:
        """Origin of the run's data and weights."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        """Current state of the run."""
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def plot(self) -> Path:
        """Plot of the loss curve."""
        return self.path / "loss.png"

    @property
    def predictions(self) -> Path:
        """Predictions of a classifier for its held-out texts."""
        return self.path / "predictions.csv"

    @property
    def figures(self) -> Path:
        """Metrics of these predictions."""
        return self.path / "metrics.json"

    @property
    def confusion(self) -> Path:
        """Plot of the confusion matrix."""
        return self.path / "confusion.png"

    @property
    def tokenizer(self) -> Path:
        """Folder of the run's tokenizer; runs of earlier versions only have it next to their data."""
        return self.path / "tokenizer"

    @property
    def lease(self) -> Path:
        """Folder of leases, which decide which process may write to the run."""
        return self.path / "lease"

    @property
    def logs(self) -> Path:
        """Folder of logs, and of stacks of hung ranks."""
        return self.path / "logs"

    @property
    def job_log(self) -> Path:
        """Log of the launcher, or of a job script and its supervisor."""
        return self.logs / "job.log"

    def rank_log(self, rank: int) -> Path:
        """Log of a rank."""
        return self.logs / f"rank-{rank:05d}.log"

    @property
    def stop_file(self) -> Path:
        """While this file exists, the run saves and exits, and does not restart."""
        return self.path / "STOP"

    @property
    def profiles(self) -> Path:
        """Folder of profiles."""
        return self.path / "profiles"

    def profile_files(self, step: int, rank: int) -> tuple[Path, Path]:
        """The trace of a rank's profile that begins with `step`, and its GPU's allocations."""
        name = f"step-{step:08d}-rank-{rank:05d}"
        return self.profiles / f"{name}.json.gz", self.profiles / f"{name}.memory.pickle"

    def profiled(self) -> dict[int, list[int]]:
        """The ranks with a profile, by its first step."""
        names = sorted(path.name for path in self.profiles.glob("step-*-rank-*.json.gz"))
        found = [(int(m[1]), int(m[2])) for name in names if (m := _PROFILE.fullmatch(name))]
        return {step: [rank for first, rank in found if first == step] for step, _ in found}

    def exists(self) -> bool:
        """True if a run was started here."""
        return self.config.is_file()

    def refuse_others(self) -> None:
        """Raise `LaunchError` if the folder is not a run's but has files that a new run would overwrite."""
        begun = (self.config, self.provenance, self.lease, self.path / "slurm")
        written = (self.metrics, self.plot, self.predictions, self.figures, self.confusion)
        found = [path for path in written if path.exists()]
        if found and not any(path.exists() for path in begun):
            raise LaunchError(
                f"{found[0]}: already exists and does not belong to a run; choose another name or move it away"
            )

    def create(self, *, config: str, provenance: Mapping[str, Any], fence: Callable[[], None] = lambda: None) -> None:
        """Create the folder. The config is written last: a folder without one is not a started run."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            atomic_write(self.provenance, json.dumps(provenance, indent=2) + "\n", fence=fence)
            atomic_write(self.config, config, fence=fence)
        except OSError as error:
            raise LaunchError(f"{self.path}: the run folder cannot be created: {error.strerror}") from None

    def record_changes(
        self, changes: Mapping[str, tuple[Any, Any]], *, step: int, fence: Callable[[], None] = lambda: None
    ) -> None:
        """Append a line to `changes.jsonl`: keys with old and new values, and the step of the newest checkpoint.

        Raises `LaunchError`.
        """
        line = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, "changed": changes}
        try:
            before = self.changes.read_text(encoding="utf-8") if self.changes.exists() else ""
            atomic_write(self.changes, f"{before}{json.dumps(line)}\n", fence=fence)
        except OSError as error:
            raise LaunchError(f"{self.changes}: cannot be written: {error.strerror}") from None

    def keep_tokenizer(self, name: str, model: bytes) -> None:
        """Store a tokenizer's file unless it exists. Raises `LaunchError`."""
        if (self.tokenizer / name).exists():
            return
        try:
            self.tokenizer.mkdir(parents=True, exist_ok=True)
            with atomic_writer(self.tokenizer / name) as temporary:
                temporary.write_bytes(model)
                fsync(temporary)
        except OSError as error:
            raise LaunchError(f"{self.tokenizer}: the tokenizer cannot be stored: {error.strerror}") from None

    def check_exists(self) -> RunDir:
        """Return this folder. Raises `LaunchError` if no run was started here."""
        if not self.exists():
            raise self.missing()
        return self

    def missing(self) -> LaunchError:
        """The error for a folder without a run."""
        return LaunchError(f"{self.path}: not a run folder (no config.yaml); expected one such as runs/quickstart")

    def refuse_if_read_only(self) -> None:
        """Raise `LaunchError` if this process may not write to the folder or create it."""
        above = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        for place in (above, self.lease, self.checkpoints):
            if place.exists() and not os.access(place, os.W_OK | os.X_OK):
                raise LaunchError(
                    f"{place}: not writable, but a run writes to its folder; make it writable, or copy the run"
                    f" ({self.path}) and resume the copy. `eval`, `report`, `export` and `status` only read"
                )

    def read_provenance(self) -> dict[str, Any]:
        """Read the provenance stored by `create`."""
        data: dict[str, Any] = json.loads(self.provenance.read_text(encoding="utf-8"))
        return data

    def read_branch(self) -> Branch | None:
        """The parent of a fork; None if the run is no fork or its provenance cannot be read."""
        try:
            return branch_of(self.read_provenance())
        except (OSError, ValueError, AttributeError):
            return None

    def read_status(self) -> Status | None:
        """Read the status; None if there is none yet."""
        try:
            return Status(**json.loads(self.status.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write_status(self, status: Status, *, fence: Callable[[], None] = lambda: None) -> None:
        """Replace the status. Raises OSError, and any error of `fence`, which is called just before."""
        stamped = {**asdict(status), "host": os.uname().nodename, "pid": os.getpid(), "updated_at": time.time()}
        atomic_write(self.status, json.dumps(stamped, indent=2) + "\n", fence=fence)


def is_resolved(config: Path) -> bool:
    """True for the resolved config of a run or submission, as opposed to one written by a user."""
    ours = (RunDir(config.parent).provenance, config.parent / "cluster.yaml")
    return config.name == "config.yaml" and any(path.is_file() for path in ours)
