"""The folder of a run: what lies where, and what the outside may read of it while it goes on. Torch-free.

config.yaml      the resolved configuration; what a resume must agree with
provenance.json  where it came from: data fingerprints, W&B run id, host, versions
metrics.jsonl    one line per logged step
status.json      what it is doing, or why and where it ended
checkpoints/     step-00000100/ ...
loss.png  wandb/
STOP             the user's wish to save and end; `xlpretrain resume` removes it
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from xlpretrain.durable import replace_file
from xlpretrain.errors import FINISHED, STOPPED_EARLY, USER_ERROR, LaunchError

State = Literal["running", "finished", "stopped", "failed"]
Reason = Literal["", "finished", "signal", "time", "user", "error", "crash"]


@dataclass(frozen=True)
class Status:
    """What `status.json` says. `reason` tells why a run is no longer running; `step` counts completed ones."""

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
    def stop_file(self) -> Path:
        """While it exists, the run saves and ends, and nothing restarts it."""
        return self.path / "STOP"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config.is_file()

    def create(self, *, config: str, provenance: Mapping[str, Any]) -> None:
        """Make the folder. The configuration is written last: a folder without one was never begun."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            replace_file(self.provenance, json.dumps(provenance, indent=2) + "\n")
            replace_file(self.config, config)
        except OSError as error:
            raise LaunchError(f"{self.path}: the run folder cannot be made: {error.strerror}") from None

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

    def require_idle(self) -> None:
        """Raise `LaunchError` if a process of this machine is working on the run: two would ruin each other's files."""
        status = self.read_status()
        if status is not None and status.state == "running" and status.host == os.uname().nodename:
            command = Path(f"/proc/{status.pid}/cmdline")
            if command.exists() and b"xlpretrain" in command.read_bytes():
                raise LaunchError(
                    f"{self.path}: is running here already (process {status.pid}, step {status.step});"
                    f" `xlpretrain stop {self.path}` ends it"
                )

    def write_status(self, status: Status) -> None:
        """Replace the status."""
        stamped = {**asdict(status), "host": os.uname().nodename, "pid": os.getpid(), "updated_at": time.time()}
        replace_file(self.status, json.dumps(stamped, indent=2) + "\n")
