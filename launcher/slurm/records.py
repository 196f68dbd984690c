"""The records of a run on Slurm, in `<run>/slurm/`. Torch-free.

config.yaml    resolved config of the ranks
cluster.yaml   resolved site profile with `nodes`, for resubmission
job.json       last job of the run
starts.jsonl   one line per start and end of an attempt, over all jobs
excluded       nodes that failed a health check, one per line
code.json      checksums of the run's copy of the code
exit_code      exit code of rank 0 in the last attempt
submitit/      files of submitit

Logs are in `<run>/logs/`: job.log of the job script and its supervisor, rank-00000.log and so on; all are appended to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.run_dir.layout import RunDir

Outcome = Literal["finished", "stopped", "requeued", "resubmitted", "failed", "fenced"]


_FOLLOWS = "# follows config.yaml "


@dataclass(frozen=True)
class Job:
    """A submitted job.

    job_id: such as "123", or "123_4" in an array. cluster: Slurm's name of it. submitted_at: seconds since 1970.
    nodes: as requested, such as "2" or "1-3". log: path of the log of the job script and its supervisor.
    """

    job_id: str
    cluster: str
    submitted_at: float
    nodes: str
    log: str


@dataclass(frozen=True)
class AttemptStart:
    """Start of an attempt. restart: number of earlier requeues of the job. step: newest checkpoint's (0: none)."""

    job_id: str
    restart: int
    at: float
    nodes: tuple[str, ...]
    world_size: int
    step: int


@dataclass(frozen=True)
class AttemptEnd:
    """End of an attempt.

    step: newest checkpoint's. message: reason, if any. progress: True if the attempt wrote a checkpoint; None in
    records of earlier versions.
    """

    at: float
    outcome: Outcome
    exit_code: int
    step: int
    message: str = ""
    progress: bool | None = None


@dataclass(frozen=True)
class SlurmFolder:
    """Paths and records in a run's Slurm folder. `path` is `<run>/slurm`."""

    path: Path

    @classmethod
    def of(cls, run: RunDir) -> SlurmFolder:
        """The Slurm folder of a run."""
        return cls(run.path / "slurm")

    @property
    def config(self) -> Path:
        """Resolved config of the ranks."""
        return self.path / "config.yaml"

    @property
    def cluster(self) -> Path:
        """Resolved site profile."""
        return self.path / "cluster.yaml"

    @property
    def job(self) -> Path:
        """Record of the last job."""
        return self.path / "job.json"

    @property
    def starts(self) -> Path:
        """Starts and ends of attempts, one per line."""
        return self.path / "starts.jsonl"

    @property
    def excluded(self) -> Path:
        """List of nodes that failed a health check."""
        return self.path / "excluded"

    @property
    def code(self) -> Path:
        """Checksums of the run's copy of the code."""
        return self.path / "code.json"

    @property
    def exit_code(self) -> Path:
        """Exit code of rank 0. srun may report that of another rank, killed because rank 0 had exited."""
        return self.path / "exit_code"

    @property
    def submitit(self) -> Path:
        """Folder of submitit's files."""
        return self.path / "submitit"

    def write_config(self, text: str) -> None:
        """Replace the config of the ranks; its first line has the digest of `<run>/config.yaml`. Raises OSError."""
        atomic_write(self.config, f"{_FOLLOWS}{_digest(self._run.config)}\n{text}")

    def newest_config(self) -> Path | None:
        """The newest config of the run: from its last attempt, or from a later submission.

        A submission is newer until an attempt changes `config.yaml`. File times are not used: copying changes them.
        """
        there = [path for path in (self._run.config, self.config) if path.is_file()]
        if len(there) < 2:
            return next(iter(there), None)
        first, _, _ = self.config.read_text(encoding="utf-8").partition("\n")
        if not first.startswith(_FOLLOWS):  # written by an earlier version
            return max(there, key=lambda path: path.stat().st_mtime)
        return self.config if first.removeprefix(_FOLLOWS) == _digest(self._run.config) else self._run.config

    @property
    def _run(self) -> RunDir:
        return RunDir(self.path.parent)

    def read_job(self) -> Job | None:
        """Read the last job; None if the run was never submitted."""
        try:
            return Job(**json.loads(self.job.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write_job(self, job: Job) -> None:
        """Replace the record of the last job. Raises OSError."""
        atomic_write(self.job, json.dumps(asdict(job), indent=2) + "\n")

    def read_events(self) -> list[AttemptStart | AttemptEnd]:
        """Read all starts and ends, oldest first. Skips a line left incomplete by a killed writer."""
        try:
            lines = self.starts.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [event for event in map(_read_event, lines) if event is not None]

    def is_superseded(self, job_id: str, restart: int) -> bool:
        """True if a newer attempt has started, for example while this one was cut off from the network."""
        starts = [event for event in self.read_events() if isinstance(event, AttemptStart)]
        return bool(starts) and (starts[-1].job_id, starts[-1].restart) != (job_id, restart)

    def append(self, event: AttemptStart | AttemptEnd) -> None:
        """Append a start or an end and fsync it. Raises OSError."""
        line = json.dumps({"event": "start" if isinstance(event, AttemptStart) else "end", **asdict(event)})
        with self.starts.open("a+b") as file:
            # An incomplete last line must not swallow this one.
            unfinished = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write(("\n" if unfinished else "").encode() + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read_excluded(self) -> list[str]:
        """Read the nodes that failed a health check, in the order of failure."""
        try:
            return self.excluded.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return []

    def exclude(self, nodes: Iterable[str]) -> None:
        """Add failed nodes. Raises OSError."""
        known = self.read_excluded()
        atomic_write(self.excluded, "".join(f"{node}\n" for node in dict.fromkeys([*known, *nodes])))


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty if it does not exist."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _read_event(line: str) -> AttemptStart | AttemptEnd | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        if fields.pop("event") == "start":
            return AttemptStart(**{**fields, "nodes": tuple(fields["nodes"])})
        return AttemptEnd(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
