"""The recorder of rank 0: metrics, status, the plot. Other ranks hold one that writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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
from xlpretrain.tracking.metrics_file import Metrics, MetricsFile
from xlpretrain.tracking.plots import plot_losses
from xlpretrain.tracking.trackers import ConsoleTracker, Tracker, WandbTracker

_WANDB_BUFFER_S = 60.0  # W&B writes its buffer every 15 s: what a kill can cost it lies within this


class Recorder:
    """The run's files and screens. `rank`: only 0 writes, as long as it has the lease; without it, it ends there.

    Attributes:
        goodput: what became of the run's time.
    """

    def __init__(self, config: RunConfig, folder: RunDir, *, rank: int, wandb_id: str, status: Status, lease: Lease):
        self.status = status
        self.goodput = Goodput()
        self._started_at = time.time()
        self._folder, self._name, self._lease = folder, config.name, lease
        self._file = MetricsFile(folder.metrics, fence=lease.check) if rank == 0 else None
        self._console: ConsoleTracker | None = None
        self._trackers: list[Tracker] = []
        self._unwritable: dict[Path, float] = {}  # since when
        self._patience_s = config.stop.unwritable_s
        if rank == 0:
            self._console = ConsoleTracker(max_steps=status.max_steps, log=folder.rank_log(0))
            wandb = WandbTracker(
                config.wandb,
                folder=folder.path,
                run_id=wandb_id,
                name=config.name,
                run_config=config.model_dump(mode="json"),
            )
            self._trackers = [self._console, wandb]

    def resume_at(self, state: TrainState, previous: Status | None) -> None:
        """Forget what was recorded after the state to go on from. After a crash, tell W&B again what it may have lost.

        previous: the status of the start before, if there was one. Raises OSError if the metrics cannot be cut back.
        """
        if self._file is None:
            return
        rows = self._file.truncate_to_step(state.recorded_step)
        self.goodput = _accounts(rows, state, previous, started_at=self._started_at)
        self.write_status("running", step=state.step)
        orderly = previous is None or previous.state in ("finished", "stopped")
        if orderly or not rows:
            return
        since = rows[-1].get("time/logged_at_s", 0.0) - _WANDB_BUFFER_S
        for row in rows:
            if row["step"] <= state.recorded_step and row.get("time/logged_at_s", 0.0) >= since:
                self._trackers[-1].log({key: value for key, value in row.items() if value is not None})

    def go_back(self, state: TrainState) -> None:
        """Forget what this start recorded after an earlier state. Raises OSError if the metrics cannot be cut back."""
        if self._file is not None:
            rows, status = (
                self._file.truncate_to_step(state.recorded_step),
                replace(self.status, updated_at=time.time()),
            )
            self.goodput = _accounts(rows, state, status, started_at=self._started_at)
            self.write_status("running", step=state.step)

    def record(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write and show the metrics of one step. What finds no room is written as soon as there is some."""
        if self._file is None:
            return
        row: Metrics = {"step": step, **metrics, **self.goodput.metrics(), "time/logged_at_s": time.time()}
        self._try(self._file.path, partial(self._file.append, row))
        self.write_status("running", step=step)
        for tracker in self._trackers:
            tracker.log(row)

    def write_status(self, state: Any, *, step: int, **more: Any) -> None:
        """Replace status.json. A full disk is no reason to end: what matters more will not be written either."""
        more["goodput"] = self.goodput.metrics()
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
            self._try(picture, partial(plot_losses, self._file.path, picture, title=self._name, fence=fence))
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
        for tracker in self._trackers:
            tracker.close()
        if self._file is not None and (lost := self._file.close()):
            self.print(f"{self._file.path}: could not be written; its last {lost} lines are lost")


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
