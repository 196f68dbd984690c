"""The folder of a run: what lies where, and what the outside may read of it while it goes on. Torch-free.

config.yaml      the resolved configuration; what a resume must agree with
provenance.json  where it came from: data fingerprints, W&B run id, host, versions
metrics.jsonl    one line per logged step
status.json      what it is doing, or why and where it ended
checkpoints/     step-00000100/ ...
tokenizer/       of a model that was imported or fine-tuned
lease/           which start of the run may write here (lease.py)
logs/            where ranks hung (watchdog.py)
loss.png  wandb/
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

from xlpretrain.durable import replace_file, replacing, sync
from xlpretrain.errors import FINISHED, STOPPED_EARLY, USER_ERROR, LaunchError

State = Literal["running", "finished", "stopped", "failed"]
Reason = Literal["", "finished", "signal", "time", "user", "disk", "error", "crash"]


@dataclass(frozen=True)
class Status:
    """What `status.json` says. `reason` tells why a run is no longer running; `step` counts completed ones.

    goodput: what became of the run's time until `updated_at`, by the names that it has in the metrics.
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

    @property
    def exit_code(self) -> int:
        """0 done; 2 the user's mistake; 75 stopped early with a checkpoint saved; 1 anything else."""
        if self.state == "finished":
            return FINISHED
        if self.state == "stopped":
            return STOPPED_EARLY
        return USER_ERROR if self.reason == "error" else 1


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Where the run came from."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        """What the run is doing."""
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
        """What a classifier says of each of its held-out texts."""
        return self.path / "predictions.csv"

    @property
    def figures(self) -> Path:
        """How good that is."""
        return self.path / "metrics.json"

    @property
    def confusion(self) -> Path:
        """Which labels it takes for which."""
        return self.path / "confusion.png"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer of a model that was imported or fine-tuned; others lie beside the data."""
        return self.path / "tokenizer"

    @property
    def lease(self) -> Path:
        """Who may write here."""
        return self.path / "lease"

    @property
    def logs(self) -> Path:
        """Where ranks hung."""
        return self.path / "logs"

    @property
    def stop_file(self) -> Path:
        """While it exists, the run saves and ends, and nothing restarts it."""
        return self.path / "STOP"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config.is_file()

    def create(self, *, config: str, provenance: Mapping[str, Any], fence: Callable[[], None] = lambda: None) -> None:
        """Make the folder. The configuration is written last: a folder without one was never begun."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            replace_file(self.provenance, json.dumps(provenance, indent=2) + "\n", fence=fence)
            replace_file(self.config, config, fence=fence)
        except OSError as error:
            raise LaunchError(f"{self.path}: the run folder cannot be made: {error.strerror}") from None

    def keep_tokenizer(self, name: str, model: bytes) -> None:
        """Put a tokenizer's file there, if it is not. Raises OSError."""
        if not (self.tokenizer / name).exists():
            self.tokenizer.mkdir(parents=True, exist_ok=True)
            with replacing(self.tokenizer / name) as temporary:
                temporary.write_bytes(model)
                sync(temporary)

    def require(self) -> RunFolder:
        """Itself. Raises `LaunchError` if no run was begun here."""
        if not self.exists():
            raise LaunchError(
                f"{self.path}: not a run folder (it has no config.yaml); name one such as runs/quickstart"
            )
        return self

    def read_provenance(self) -> dict[str, Any]:
        """What `create` was told."""
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
        replace_file(self.status, json.dumps(stamped, indent=2) + "\n", fence=fence)
