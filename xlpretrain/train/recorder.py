"""Recording on rank 0: metrics, status, plot, console and trackers. On other ranks the recorder writes nothing."""

from __future__ import annotations

import logging
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
from xlpretrain.run_dir.alerts import Alerts, Event, describe_stop
from xlpretrain.run_dir.goodput import Goodput
from xlpretrain.run_dir.layout import FORKED_FROM, RunDir, Status
from xlpretrain.run_dir.lease import Lease, leave
from xlpretrain.run_dir.stop import StopReason
from xlpretrain.tracking.base import TrackedRun
from xlpretrain.tracking.guard import Trackers
from xlpretrain.tracking.live_line import RunConsole
from xlpretrain.tracking.metrics_file import Metrics, MetricsFile
from xlpretrain.tracking.plots import plot_losses
from xlpretrain.tracking.wandb import WandbConfig

logger = logging.getLogger(__name__)


class Recorder:
    """Writer of the run's metrics, status and plot, and sender of its alerts. Only rank 0 writes and sends; it exits
    the process if it loses the lease.

    Attributes:
        goodput: how the run's time was spent.
    """

    def __init__(self, config: RunConfig, folder: RunDir, *, rank: int, run_id: str, status: Status, lease: Lease):
        self.status = status
        self.goodput = Goodput()
        self._started_at = time.time()
        self._folder, self._config, self._lease, self._run_id = folder, config, lease, run_id
        self._file = MetricsFile(folder.metrics, fence=lease.check) if rank == 0 else None
        self._console: RunConsole | None = None
        self._trackers: Trackers | None = None
        self._alerts: Alerts | None = None
        self._unwritable: dict[Path, float] = {}  # path -> time of the first failure
        self._patience_s = config.stop.unwritable_s
        if rank == 0:
            self._console = RunConsole(max_steps=status.max_steps, log=folder.rank_log(0))
            self._alerts = Alerts(config.alerts, folder, warn=logger.warning)

    def resume_at(self, state: TrainState, previous: Status | None) -> None:
        """Drop what was recorded after the state to resume from, start the trackers, and send the alert of the start.
        Steps that a tracker missed, or may have lost in a crash, are sent to it again.

        previous: the status of the previous attempt, if any. Raises OSError if the metrics cannot be truncated.
        """
        if self._file is None:
            return
        rows = self._file.truncate_to_step(state.recorded_step)
        self.goodput = _accounts(rows, state, previous, started_at=self._started_at)
        config = self._config.model_dump(mode="json")
        if branch := self._folder.read_branch():
            config[FORKED_FROM] = vars(branch)
        self._trackers = Trackers(
            self._config.trackers,
            TrackedRun(self._run_id, self._config.name, self._folder.path, config),
            rows=[_finite(row) for row in rows if row["step"] <= state.recorded_step],
            told=_told_before(previous, rows),
        )
        self.write_status("running", step=state.step)
        ranks = "1 rank" if self.status.world_size == 1 else f"{self.status.world_size} ranks"
        self.alert("start", f"on {ranks}, to step {self.status.max_steps}")

    def go_back(self, state: TrainState) -> None:
        """Drop what was recorded after an earlier state. Raises OSError if the metrics cannot be truncated."""
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
        """Write and show the metrics of one step. If the disk is full, they are written once there is space."""
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
        """Replace status.json. A full disk does not end the run here; see `reason_to_stop`."""
        more["goodput"] = self.goodput.metrics()
        if self._trackers is not None:
            more |= {"told": self._trackers.told, "url": self._trackers.url}
        self.status = Status(**{**vars(self.status), "state": state, "step": step, **more})
        if self._file is not None:
            write = partial(self._folder.write_status, self.status, fence=self._lease.check)
            self._try(self._folder.status, write)

    def reason_to_stop(self) -> StopReason | None:
        """`disk` if metrics or status have been unwritable for `stop.unwritable_s` and still are, else None."""
        now = time.monotonic()
        if self._file is None or all(now - since < self._patience_s for since in self._since()):
            return None
        self._try(self._file.path, self._file.sync)
        self.write_status(self.status.state, step=self.status.step)
        return "disk" if any(self._since()) else None

    def be_patient(self) -> None:
        """Restart the wait of `stop.unwritable_s`."""
        self._unwritable = dict.fromkeys(self._unwritable, time.monotonic())

    def _since(self) -> list[float]:
        """Times since which the essential files (all but the plot) have been unwritable."""
        return [since for path, since in self._unwritable.items() if path != self._folder.plot]

    def _try(self, path: Path, write: Callable[[], object]) -> None:
        """Write a file that training can continue without. Print once when that fails, and once when it works again."""
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
            self.print(f"{path}: cannot be written: {reason}; training continues")
            self._unwritable[path] = time.monotonic()

    def print(self, message: str) -> None:
        """Print a line on the console."""
        if self._console is not None:
            self._console.print(message)

    def alert(self, event: Event, message: str, *, step: int | None = None) -> None:
        """Send an alert, if the config lists its event; does not wait. step: completed steps (default: as recorded)."""
        if self._alerts is not None:
            status = self.status if step is None else replace(self.status, step=step)
            self._alerts.send(event, message, status=status)

    def show_straggler(self, text: str) -> None:
        """Say in the status from the next row on which rank is late; empty if none is."""
        self.status = replace(self.status, straggler=text)

    def sync(self) -> None:
        """Fsync the metrics, if they can be written; called before a checkpoint is committed. Thread-safe."""
        if self._file is not None:
            with suppress(OSError):  # `record` reports it; the checkpoint is useful anyway
                self._file.sync()

    def plot(self) -> None:
        """Redraw the loss curve. A failure is printed and does not end the run."""
        if self._file is None:
            return
        picture, fence = self._folder.plot, self._lease.check
        try:
            self._try(picture, partial(plot_losses, self._file.path, picture, title=self._config.name, fence=fence))
        except MissingPackageError as error:
            self._note_failure(picture, str(error))
        except Exception as error:  # from matplotlib: a failed plot must not end the run
            self._note_failure(picture, f"{type(error).__name__}: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._try(self._file.path, self._file.sync)
        if not self.status.launch_id:  # else the launcher does
            self._send_end(error)
        if self._console is not None:
            self._console.close()
        if self._trackers is not None:
            ended = self.status.state
            self._trackers.close("failed" if ended == "running" else ended)
            self.write_status(ended, step=self.status.step)  # with the last step sent to each
        if self._file is not None and (lost := self._file.close()):
            self.print(f"{self._file.path}: could not be written; its last {lost} lines are lost")
        if self._alerts is not None:
            self._alerts.wait()

    def _send_end(self, error: BaseException | None) -> None:
        """Send the alert on the end of an attempt that has no launcher of ours to send it."""
        match self.status.state:
            case "finished":
                self.alert("finish", "")
            case "stopped":
                self.alert("stop", describe_stop(self.status.reason))
            case "failed":
                self.alert("failure", self.status.message)
            case _ if error is not None:
                self.alert("failure", f"{type(error).__name__}: {error}")


def _finite(row: Mapping[str, Any]) -> Metrics:
    """A row of the metrics file without its nulls, which stand for infinities and NaN."""
    return {key: value for key, value in row.items() if value is not None}


def _told_before(previous: Status | None, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """The last step that each tracker is known to have kept, from previous attempts."""
    if previous is None or not rows:
        return {}
    if previous.told is not None:
        return previous.told
    # An earlier version logged to W&B only; steps that W&B had not written when it was killed are lost.
    was_killed = previous.state not in ("finished", "stopped")
    safe = rows[-1].get("time/logged_at_s", 0.0) - (WandbConfig.buffer_s if was_killed else 0.0)
    return {"wandb": max((row["step"] for row in rows if row.get("time/logged_at_s", 0.0) <= safe), default=0)}


def _accounts(rows: list[dict[str, Any]], state: TrainState, previous: Status | None, *, started_at: float) -> Goodput:
    """The goodput accounts of an attempt that resumes from a state and started at `started_at` (seconds since 1970).

    Downtime after a requested stop or a finished run is not counted.
    """
    if previous is None:
        return Goodput()
    kept: Mapping[str, Any] = next((row for row in reversed(rows) if row["step"] <= state.recorded_step), {})
    if previous.step == state.step:
        kept = previous.goodput  # an interrupted evaluation left no row
    rested = previous.reason in ("user", "finished")
    return Goodput.resumed(
        previous.goodput,
        kept,
        steps_lost=previous.step - state.step,
        away_s=time.time() - (started_at if rested else previous.updated_at),
    )
