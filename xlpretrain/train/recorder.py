"""The recorder of rank 0: metrics, status, the plot. Other ranks hold one that writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.config.run_config import RunConfig
from xlpretrain.errors import LeaseLostError
from xlpretrain.extras import MissingPackageError
from xlpretrain.run_dir.goodput import Goodput
from xlpretrain.run_dir.layout import RunDir, Status
from xlpretrain.run_dir.lease import Lease, leave
from xlpretrain.run_dir.stop import StopReason
from xlpretrain.tracking.base import TrackedRun
from xlpretrain.tracking.guard import Trackers
from xlpretrain.tracking.live_line import RunConsole
from xlpretrain.tracking.metrics_file import Metrics, MetricsFile
from xlpretrain.tracking.plots import plot_losses
from xlpretrain.tracking.wandb import WandbConfig


class Recorder:
    """The run's files and screens. `rank`: only 0 writes, as long as it has the lease; without it, it ends there.

    Attributes:
        goodput: what became of the run's time.
    """

    def __init__(self, config: RunConfig, folder: RunDir, *, rank: int, run_id: str, status: Status, lease: Lease):
        self.status = status
        self.goodput = Goodput()
        self._started_at = time.time()
        self._folder, self._config, self._lease, self._run_id = folder, config, lease, run_id
        self._file = MetricsFile(folder.metrics, fence=lease.check) if rank == 0 else None
        self._console: RunConsole | None = None
        self._trackers: Trackers | None = None
        self._unwritable: dict[Path, float] = {}  # since when
        self._patience_s = config.stop.unwritable_s
        if rank == 0:
            self._console = RunConsole(max_steps=status.max_steps, log=folder.rank_log(0))

    def resume_at(self, state: TrainState, previous: Status | None) -> None:
        """Forget what was recorded after the state to resume from, and start the trackers. They are told what they
        have missed, or may have lost in a crash.

        previous: the status of the attempt before, if there was one. Raises OSError if the metrics cannot be cut back.
        """
        if self._file is None:
            return
        rows = self._file.truncate_to_step(state.recorded_step)
        self.goodput = _accounts(rows, state, previous, started_at=self._started_at)
        config = self._config.model_dump(mode="json")
        self._trackers = Trackers(
            self._config.trackers,
            TrackedRun(self._run_id, self._config.name, self._folder.path, config),
            rows=[_finite(row) for row in rows if row["step"] <= state.recorded_step],
            told=_told_before(previous, rows),
        )
        self.write_status("running", step=state.step)

    def go_back(self, state: TrainState) -> None:
        """Forget what this start recorded after an earlier state. Raises OSError if the metrics cannot be cut back."""
        if self._file is not None:
            rows, status = (
                self._file.truncate_to_step(state.recorded_step),
                replace(self.status, updated_at=time.time()),
            )
            self.goodput = _accounts(rows, state, status, started_at=self._started_at)
            if self._trackers is not None:
                self._trackers.go_back(state.recorded_step)
            self.write_status("running", step=state.step)

    def record(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write and show the metrics of one step. What finds no room is written as soon as there is some."""
        if self._file is None:
            return
        row: Metrics = {"step": step, **metrics, **self.goodput.metrics(), "time/logged_at_s": time.time()}
        self._try(self._file.path, partial(self._file.append, row))
        self.write_status("running", step=step)
        if self._console is not None:
            self._console.log(row)
        if self._trackers is not None:
            self._trackers.log(row)

    def write_status(self, state: Any, *, step: int, **more: Any) -> None:
        """Replace status.json. A full disk is no reason to end: what matters more will not be written either."""
        more["goodput"] = self.goodput.metrics()
        if self._trackers is not None:
            more["told"] = self._trackers.told
        self.status = Status(**{**vars(self.status), "state": state, "step": step, **more})
        if self._file is not None:
            write = partial(self._folder.write_status, self.status, fence=self._lease.check)
            self._try(self._folder.status, write)

    def reason_to_stop(self) -> StopReason | None:
        """`disk`, if metrics or status could not be written for `stop.unwritable_s`, nor now."""
        now = time.monotonic()
        if self._file is None or all(now - since < self._patience_s for since in self._since()):
            return None
        self._try(self._file.path, self._file.sync)
        self.write_status(self.status.state, step=self.status.step)
        return "disk" if any(self._since()) else None

    def be_patient(self) -> None:
        """Try for `stop.unwritable_s` again, from now on."""
        self._unwritable = dict.fromkeys(self._unwritable, time.monotonic())

    def _since(self) -> list[float]:
        """Since when each of the files cannot be written that a run may not be without for long."""
        return [since for path, since in self._unwritable.items() if path != self._folder.plot]

    def _try(self, path: Path, write: Callable[[], object]) -> None:
        """Write a file that training can do without for now; say once that it cannot be, and once that it can again."""
        try:
            write()
        except LeaseLostError as error:
            leave(error)
        except OSError as error:
            self._note_failure(path, error.strerror or str(error))
        else:
            if self._unwritable.pop(path, None) is not None:
                self.print(f"{path}: can be written again")

    def _note_failure(self, path: Path, reason: str) -> None:
        if path not in self._unwritable:
            self.print(f"{path}: cannot be written: {reason}; training goes on")
            self._unwritable[path] = time.monotonic()

    def print(self, message: str) -> None:
        """A line on the console."""
        if self._console is not None:
            self._console.print(message)

    def sync(self) -> None:
        """Wait until the metrics are on the disk, if they can be written: before a checkpoint that stands on them.

        Any thread may call it.
        """
        if self._file is not None:
            with suppress(OSError):  # said by `record`; a checkpoint is worth having without
                self._file.sync()

    def plot(self) -> None:
        """Draw the loss curve anew, if that can be done."""
        if self._file is None:
            return
        picture, fence = self._folder.plot, self._lease.check
        try:
            self._try(picture, partial(plot_losses, self._file.path, picture, title=self._config.name, fence=fence))
        except MissingPackageError as error:
            self._note_failure(picture, str(error))
        except Exception as error:  # of matplotlib's: no picture is worth a run
            self._note_failure(picture, f"{type(error).__name__}: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._try(self._file.path, self._file.sync)
        if self._console is not None:
            self._console.close()
        if self._trackers is not None:
            ended = self.status.state
            self._trackers.close("failed" if ended == "running" else ended)
            self.write_status(ended, step=self.status.step)  # what they have been told
        if self._file is not None and (lost := self._file.close()):
            self.print(f"{self._file.path}: could not be written; its last {lost} lines are lost")


def _finite(row: Mapping[str, Any]) -> Metrics:
    """The numbers of a row of the metrics file, in which infinities and NaN are null."""
    return {key: value for key, value in row.items() if value is not None}


def _told_before(previous: Status | None, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """The last step that each tracker has safely been told of in the attempts before."""
    if previous is None or not rows:
        return {}
    if previous.told is not None:
        return previous.told
    # An earlier version told W&B alone; what it had not written yet when it was killed is lost.
    was_killed = previous.state not in ("finished", "stopped")
    safe = rows[-1].get("time/logged_at_s", 0.0) - (WandbConfig.buffer_s if was_killed else 0.0)
    return {"wandb": max((row["step"] for row in rows if row.get("time/logged_at_s", 0.0) <= safe), default=0)}


def _accounts(rows: list[dict[str, Any]], state: TrainState, previous: Status | None, *, started_at: float) -> Goodput:
    """The accounts of an attempt that resumes from a state, and was started at `started_at` (seconds since 1970).

    Time between a stop that the user asked for, or the end of a run, and this attempt is nobody's.
    """
    if previous is None:
        return Goodput()
    kept: Mapping[str, Any] = next((row for row in reversed(rows) if row["step"] <= state.recorded_step), {})
    if previous.step == state.step:
        kept = previous.goodput  # an evaluation that was cut has left no row
    rested = previous.reason in ("user", "finished")
    return Goodput.resumed(
        previous.goodput,
        kept,
        steps_lost=previous.step - state.step,
        away_s=time.time() - (started_at if rested else previous.updated_at),
    )
