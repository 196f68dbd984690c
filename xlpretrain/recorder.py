"""What rank 0 writes down: metrics, status, the plot. Other ranks hold one that writes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from xlpretrain.config import RunConfig
from xlpretrain.errors import LaunchError
from xlpretrain.metrics import Metrics, MetricsFile
from xlpretrain.plots import plot_losses
from xlpretrain.run_folder import RunFolder, Status
from xlpretrain.trackers import ConsoleTracker, Tracker, WandbTracker

_WANDB_BUFFER_S = 60.0  # W&B writes its buffer every 15 s: what a kill can cost it lies within this


class Recorder:
    """The run's files and screens. `rank`: only 0 writes."""

    def __init__(self, config: RunConfig, folder: RunFolder, *, rank: int, wandb_id: str, status: Status):
        self.status = status
        self._folder, self._name = folder, config.name
        self._file = MetricsFile(folder.metrics) if rank == 0 else None
        self._console: ConsoleTracker | None = None
        self._trackers: list[Tracker] = []
        if rank == 0:
            self._console = ConsoleTracker(max_steps=status.max_steps)
            wandb = WandbTracker(
                config.wandb,
                folder=folder.path,
                run_id=wandb_id,
                name=config.name,
                run_config=config.model_dump(mode="json"),
            )
            self._trackers = [self._console, wandb]

    def go_on_from(self, step: int, *, orderly: bool) -> None:
        """Forget what was recorded after `step`. After a crash, tell W&B again what it may have lost.

        Raises OSError if the metrics cannot be cut back.
        """
        if self._file is None:
            return
        rows = self._file.cut_back(step)
        self.tell("running", step=step)
        if orderly or not rows:
            return
        since = rows[-1].get("time/logged_at_s", 0.0) - _WANDB_BUFFER_S
        for row in rows:
            if row["step"] <= step and row.get("time/logged_at_s", 0.0) >= since:
                self._trackers[-1].log({key: value for key, value in row.items() if value is not None})

    def record(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write and show the metrics of one step. Raises `LaunchError` if they cannot be written."""
        if self._file is None:
            return
        row: Metrics = {"step": step, **metrics, "time/logged_at_s": time.time()}
        try:
            self._file.append(row)
        except OSError as error:
            raise LaunchError(f"{self._file.path}: cannot be written: {error.strerror}") from None
        self.tell("running", step=step)
        for tracker in self._trackers:
            tracker.log(row)

    def tell(self, state: Any, *, step: int, **more: Any) -> None:
        """Replace status.json. A full disk is no reason to end: what matters more will not be written either."""
        self.status = Status(**{**vars(self.status), "state": state, "step": step, **more})
        if self._file is not None:
            try:
                self._folder.write_status(self.status)
            except OSError as error:
                self.say(f"{self._folder.status}: cannot be written: {error.strerror}")

    def say(self, message: str) -> None:
        """A line on the console."""
        if self._console is not None:
            self._console.say(message)

    def sync(self) -> None:
        """Wait until the metrics are on the disk: before a checkpoint that stands on them."""
        if self._file is not None:
            self._file.sync()

    def plot(self) -> None:
        """Draw the loss curve anew, if there is room for it."""
        if self._file is not None:
            try:
                plot_losses(self._file.path, self._folder.plot, title=self._name)
            except OSError as error:
                self.say(f"{self._folder.plot}: cannot be written: {error.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.close()
        if self._file is not None:
            self._file.close()
