"""Everything that a report shows of a run, read from its folder. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xlpretrain import schema
from xlpretrain.checkpoint.files import parse_step
from xlpretrain.errors import LaunchError, XLPretrainError
from xlpretrain.evaluation.report_page.columns import MetricsColumns
from xlpretrain.run_dir.goodput import Goodput
from xlpretrain.run_dir.layout import Branch, RunDir, Status, branch_of

GOODPUT_PARTS = ("step_s", "data_wait_s", "save_s", "eval_s", "restart_s", "lost_s")


@dataclass(frozen=True)
class Interruption:
    """A restart or a rollback, at the first step logged after it. away_s, lost_s: seconds spent on it (`Goodput`)."""

    step: int
    kind: str
    away_s: float
    lost_s: float
    steps_redone: int


@dataclass(frozen=True)
class RunData:
    """Contents of a run folder; what a run does not have yet is empty.

    label: distinct among the runs of a report. table: metrics by name, one value per logged step. scores: metrics of a
    classifier's held-out texts (metrics.json). problems: files that could not be read.
    """

    label: str
    folder: RunDir
    status: Status | None = None
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    table: dict[str, np.ndarray] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def steps(self) -> np.ndarray:
        """Logged steps."""
        return self.table.get("step", np.empty(0))

    def column(self, metric: str) -> np.ndarray:
        """A metric at the logged steps; NaN where it is missing."""
        return self.table.get(metric, np.full(len(self.steps), np.nan))

    @property
    def branch(self) -> Branch | None:
        """The run that it was forked from, if it is a fork; its curves begin there."""
        return branch_of(self.provenance)

    def running_s(self) -> np.ndarray:
        """Seconds of the run's attempts until each logged step, without pauses that the user asked for."""
        return np.asarray(sum(np.nan_to_num(self.column(f"goodput/{part}")) for part in GOODPUT_PARTS))

    def clock_s(self) -> np.ndarray:
        """Seconds since the run's start until each logged step; NaN in runs of early versions."""
        logged = self.column("time/logged_at_s")
        return np.asarray(logged - logged[:1] + self.running_s()[:1])

    def goodput(self) -> Goodput:
        """The time by its use until the newest of status and metrics."""
        last = {name: float(values[-1]) for name, values in self.table.items() if name.startswith("goodput/")}
        of_status = Goodput.from_metrics(self.status.goodput if self.status else {})
        of_rows = Goodput.from_metrics({name: value for name, value in last.items() if np.isfinite(value)})
        return max(of_status, of_rows, key=lambda found: found.total_s)

    def interruptions(self) -> list[Interruption]:
        """Restarts and rollbacks, by step."""
        restarts = np.diff(np.nan_to_num(self.column("goodput/restarts")), prepend=0)
        rollbacks = np.diff(np.nan_to_num(self.column("events/rollbacks")), prepend=0)
        costs = {
            name: np.diff(np.nan_to_num(self.column(f"goodput/{name}")), prepend=0)
            for name in ("restart_s", "lost_s", "steps_redone")
        }
        return [
            Interruption(
                int(self.steps[row]),
                "rollback" if rollbacks[row] > 0 else "restart",
                float(costs["restart_s"][row]),
                float(costs["lost_s"][row]),
                int(costs["steps_redone"][row]),
            )
            for row in np.flatnonzero(restarts > 0)
        ]


class RunReader:
    """Reads a run again and again while it is training."""

    def __init__(self, path: Path, label: str):
        self.folder = RunDir(path)
        self._label = label
        self._columns = MetricsColumns(self.folder.metrics)
        self._stamps: list[tuple[int, int] | None] | None = None

    def refresh(self) -> bool:
        """Read new metrics. Returns True if these or any other file that `read` shows have changed."""
        watched = (self.folder.config, self.folder.status, self.folder.provenance, self.folder.changes)
        stamps = [_stamp(path) for path in (*watched, self.folder.figures)]
        has_changed = stamps != self._stamps
        self._stamps = stamps
        try:
            return self._columns.refresh() or has_changed
        except OSError as error:
            raise LaunchError(f"{self.folder.metrics}: cannot be read: {error.strerror}") from None

    def read(self) -> RunData:
        """The run as of the last `refresh`. Files that cannot be read are named in `problems`."""
        problems: list[str] = []
        status = None
        try:
            status = self.folder.read_status()
        except (OSError, ValueError, TypeError):
            problems.append(f"{self.folder.status.name}: cannot be read")
        config: dict[str, Any] = {}
        try:
            config = schema.read_yaml(self.folder.config) if self.folder.exists() else {}
        except XLPretrainError as error:
            problems.append(str(error))
        if self._columns.num_damaged:
            problems.append(f"{self.folder.metrics.name}: {self._columns.num_damaged} damaged lines left out")
        return RunData(
            self._label,
            self.folder,
            status=status,
            config=config,
            provenance=_read_mapping(self.folder.provenance, problems),
            changes=_read_lines(self.folder.changes, problems),
            scores=_read_mapping(self.folder.figures, problems),
            table=self._columns.table(),
            problems=problems,
        )


def open_runs(paths: Sequence[Path]) -> list[RunReader]:
    """Readers of runs, labelled by the shortest distinct ends of their paths. Raises `LaunchError` for repeats."""
    places = [path.absolute() for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise LaunchError(f"{place}: given twice; name each run once")
    length = 1
    while len({place.parts[-length:] for place in places}) < len(places):
        length += 1
    return [
        RunReader(path, "/".join(place.parts[-length:]) or str(place))
        for path, place in zip(paths, places, strict=True)
    ]


def find_origin(run: RunData, others: Sequence[RunData]) -> tuple[RunData, int] | None:
    """The run among `others` whose weights a run started from (`init_from`), and the step of these weights.

    If `init_from` names no checkpoint, that is the last step which the other run had logged when this one started.
    """
    source = run.config.get("init_from")
    if not isinstance(source, str):
        return None
    place = Path(source).absolute()
    for other in others:
        folders = {other.folder.path.absolute()}
        if isinstance(other.config.get("runs_dir"), str) and isinstance(other.config.get("name"), str):
            folders.add((Path(other.config["runs_dir"]) / other.config["name"]).absolute())
        if other is run or not folders & {place, *place.parents}:
            continue
        step = parse_step(place)
        if step is None:
            started = run.column("time/logged_at_s")[:1] - run.running_s()[:1]
            before = other.steps[other.column("time/logged_at_s") <= started] if len(started) else other.steps[:0]
            if not len(before):
                return None
            step = int(before[-1])
        return other, step
    return None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _read_mapping(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        problems.append(f"{path.name}: cannot be read")
        return {}
    return found if isinstance(found, dict) else {}


def _read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        problems.append(f"{path.name}: cannot be read")
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("changed"), dict):
            found.append(entry)
    return found
