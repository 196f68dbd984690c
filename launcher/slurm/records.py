"""The records of a run on Slurm, in `<run>/slurm/`. Torch-free.

config.yaml    the resolved configuration that the ranks run
cluster.yaml   the resolved site profile, with nodes: to submit again
job.json       the last job it was submitted as
starts.jsonl   one line per start of the run and per end of one, over all jobs
excluded       nodes that failed a health check, one a line
code.json      checksums of the run's copy of the code
exit_code      exit code of rank 0 in the last attempt
submitit/      what submitit needs

Logs lie in `<run>/logs/`: job.log of the job script and its supervisor, rank-00000.log and so on; all are appended to.
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
    """A run as it was submitted.

    job_id: such as "123", or "123_4" in an array. cluster: its name for Slurm. submitted_at: seconds since 1970.
    nodes: as asked for, such as "2" or "1-3". log: of the job script and its supervisor.
    """

    job_id: str
    cluster: str
    submitted_at: float
    nodes: str
    log: str


@dataclass(frozen=True)
class AttemptStart:
    """A job began to run. restart: how often Slurm had requeued it. step: of the newest checkpoint (0: none)."""

    job_id: str
    restart: int
    at: float
    nodes: tuple[str, ...]
    world_size: int
    step: int


@dataclass(frozen=True)
class AttemptEnd:
    """A start of the run is over.

    step: of the newest checkpoint. message: the reason, where there is one. progress: whether the start wrote a
    checkpoint; None in records of versions before it was written down.
    """

    at: float
    outcome: Outcome
    exit_code: int
    step: int
    message: str = ""
    progress: bool | None = None


@dataclass(frozen=True)
class SlurmFolder:
    """Paths and small files of a run's Slurm side. `path` is `<run>/slurm`."""

    path: Path

    @classmethod
    def of(cls, run: RunDir) -> SlurmFolder:
        """The records of a run."""
        return cls(run.path / "slurm")

    @property
    def config(self) -> Path:
        """The resolved configuration that the ranks run."""
        return self.path / "config.yaml"

    @property
    def cluster(self) -> Path:
        """The resolved site profile."""
        return self.path / "cluster.yaml"

    @property
    def job(self) -> Path:
        """The last job."""
        return self.path / "job.json"

    @property
    def starts(self) -> Path:
        """Starts and ends, one a line."""
        return self.path / "starts.jsonl"

    @property
    def excluded(self) -> Path:
        """Nodes that failed a health check."""
        return self.path / "excluded"

    @property
    def code(self) -> Path:
        """The checksums of the run's copy of the code."""
        return self.path / "code.json"

    @property
    def exit_code(self) -> Path:
        """Exit code of rank 0. That of srun may be another rank's, which was ended because rank 0 had left."""
        return self.path / "exit_code"

    @property
    def submitit(self) -> Path:
        """submitit's own files."""
        return self.path / "submitit"

    def write_config(self, text: str) -> None:
        """Replace the configuration that the ranks run; its first line says what `config.yaml` was. Raises OSError."""
        atomic_write(self.config, f"{_FOLLOWS}{_digest(self._run.config)}\n{text}")

    def newest_config(self) -> Path | None:
        """The file that says what the run was last told to be: at its last start, or at a submission since then.

        A submission is news until a start has changed `config.yaml`. Times of files do not tell: copies have new ones.
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
        """The last job; None if the run was never submitted."""
        try:
            return Job(**json.loads(self.job.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write_job(self, job: Job) -> None:
        """Replace it. Raises OSError."""
        atomic_write(self.job, json.dumps(asdict(job), indent=2) + "\n")

    def read_events(self) -> list[AttemptStart | AttemptEnd]:
        """All starts and ends, oldest first. A line that a killed writer left unfinished is passed over."""
        try:
            lines = self.starts.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [event for event in map(_read_event, lines) if event is not None]

    def is_superseded(self, job_id: str, restart: int) -> bool:
        """True if another attempt began after that one was given up: cut off from the network, it may not know."""
        starts = [event for event in self.read_events() if isinstance(event, AttemptStart)]
        return bool(starts) and (starts[-1].job_id, starts[-1].restart) != (job_id, restart)

    def append(self, event: AttemptStart | AttemptEnd) -> None:
        """Add a start or an end, and see it on the disk. Raises OSError."""
        line = json.dumps({"event": "start" if isinstance(event, AttemptStart) else "end", **asdict(event)})
        with self.starts.open("a+b") as file:
            # What was left unfinished shall not swallow this line.
            unfinished = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write(("\n" if unfinished else "").encode() + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read_excluded(self) -> list[str]:
        """The nodes that failed a health check, in the order in which they did."""
        try:
            return self.excluded.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return []

    def exclude(self, nodes: Iterable[str]) -> None:
        """Add nodes to those. Raises OSError."""
        known = self.read_excluded()
        atomic_write(self.excluded, "".join(f"{node}\n" for node in dict.fromkeys([*known, *nodes])))


def _digest(path: Path) -> str:
    """The digest of a file; empty if it does not exist."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _read_event(line: str) -> AttemptStart | AttemptEnd | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        if fields.pop("event") == "start":
            return AttemptStart(**{**fields, "nodes": tuple(fields["nodes"])})
        return AttemptEnd(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
