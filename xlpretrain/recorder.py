"""What rank 0 writes down: metrics, status, the plot. Other ranks hold one that writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xlpretrain.config import RunConfig
from xlpretrain.errors import LeaseLostError
from xlpretrain.goodput import Goodput
from xlpretrain.lease import Lease, leave
from xlpretrain.metrics import Metrics, MetricsFile
from xlpretrain.plots import plot_losses
from xlpretrain.run_folder import RunFolder, Status
from xlpretrain.trackers import ConsoleTracker, Tracker, WandbTracker

_WANDB_BUFFER_S = 60.0  # W&B writes its buffer every 15 s: what a kill can cost it lies within this


class Recorder:
    """The run's files and screens. `rank`: only 0 writes, as long as it has the lease; without it, it ends there.

    Attributes:
        goodput: what became of the run's time.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, *, rank: int, wandb_id: str, status: Status, lease: Lease):
        self.status = status
        self.goodput = Goodput()
        self._folder, self._name, self._lease = folder, config.name, lease
        self._file = MetricsFile(folder.metrics, fence=lease.check) if rank == 0 else None
        self._console: ConsoleTracker | None = None
        self._trackers: list[Tracker] = []
        self._unwritable: set[Path] = set()
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

    def go_on_from(self, step: int, previous: Status | None) -> None:
        """Forget what was recorded after `step`. After a crash, tell W&B again what it may have lost.

        previous: the status of the start before, if there was one. Raises OSError if the metrics cannot be cut back.
        """
        if self._file is None:
            return
        rows = self._file.cut_back(step)
        self.goodput = _accounts(rows, step, previous)
        self.tell("running", step=step)
        orderly = previous is None or previous.state in ("finished", "stopped")
        if orderly or not rows:
            return
        since = rows[-1].get("time/logged_at_s", 0.0) - _WANDB_BUFFER_S
        for row in rows:
            if row["step"] <= step and row.get("time/logged_at_s", 0.0) >= since:
                self._trackers[-1].log({key: value for key, value in row.items() if value is not None})

    def go_back(self, step: int) -> None:
        """Forget what this start recorded after `step`. Raises OSError if the metrics cannot be cut back."""
        if self._file is not None:
            self.goodput = _accounts(self._file.cut_back(step), step, replace(self.status, updated_at=time.time()))
            self.tell("running", step=step)

    def record(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write and show the metrics of one step. What finds no room is written as soon as there is some."""
        if self._file is None:
            return
        row: Metrics = {"step": step, **metrics, **self.goodput.metrics(), "time/logged_at_s": time.time()}
        self._try(self._file.path, partial(self._file.append, row))
        self.tell("running", step=step)
        for tracker in self._trackers:
            tracker.log(row)

    def tell(self, state: Any, *, step: int, **more: Any) -> None:
        """Replace status.json. A full disk is no reason to end: what matters more will not be written either."""
        more["goodput"] = self.goodput.metrics()
        self.status = Status(**{**vars(self.status), "state": state, "step": step, **more})
        if self._file is not None:
            write = partial(self._folder.write_status, self.status, fence=self._lease.check)
            self._try(self._folder.status, write)

    def _try(self, path: Path, write: Callable[[], object]) -> None:
        """Write a file that training can do without; say so once where it cannot be, and once where it can again."""
        try:
            write()
        except LeaseLostError as error:
            leave(error)
        except OSError as error:
            if path not in self._unwritable:
                self.say(f"{path}: cannot be written: {error.strerror}; training goes on")
            self._unwritable.add(path)
        else:
            if path in self._unwritable:
                self.say(f"{path}: can be written again")
            self._unwritable.discard(path)

    def say(self, message: str) -> None:
        """A line on the console."""
        if self._console is not None:
            self._console.say(message)

    def sync(self) -> None:
        """Wait until the metrics are on the disk, if they can be written: before a checkpoint that stands on them.

        Any thread may call it.
        """
        if self._file is not None:
            with suppress(OSError):  # said by `record`; a checkpoint is worth having without
                self._file.sync()

    def plot(self) -> None:
        """Draw the loss curve anew, if there is room for it."""
        if self._file is not None:
            picture, fence = self._folder.plot, self._lease.check
            self._try(picture, partial(plot_losses, self._file.path, picture, title=self._name, fence=fence))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._try(self._file.path, self._file.sync)
        for tracker in self._trackers:
            tracker.close()
        if self._file is not None:
            self._file.close()


def _accounts(rows: list[dict[str, Any]], step: int, previous: Status | None) -> Goodput:
    """The accounts of a start that goes on from `step`. What a user's wish or the last step had ended, has rested."""
    if previous is None:
        return Goodput()
    kept: dict[str, Any] = next((row for row in reversed(rows) if row["step"] <= step), {})
    rested = previous.reason in ("user", "finished")
    return Goodput.resumed(
        previous.goodput,
        kept,
        steps_lost=previous.step - step,
        away_s=0.0 if rested else time.time() - previous.updated_at,
    )
