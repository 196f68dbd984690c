"""The tracker that writes TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xlpretrain.tracking.base import TrackedRun, Tracker, TrackerConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardConfig(TrackerConfig):
    """TensorBoard."""

    type: Literal["tensorboard"] = "tensorboard"
    """TensorBoard's event files."""
    folder: Path | None = None
    """Folder of the folders of runs, for `tensorboard --logdir` (default: `tensorboard` in the run's folder)."""

    title = "TensorBoard"
    package = "tensorboard"
    extra = "tensorboard"
    buffer_s = 60.0  # handed to the operating system, which a machine that fails may not have written

    def build(self, run: TrackedRun) -> Tracker:
        """Begin another event file."""
        folder = run.folder / "tensorboard" if self.folder is None else self.folder / run.name
        return TensorBoardTracker(folder, next_step=run.next_step)


class TensorBoardTracker(Tracker):
    """Event files: one per attempt and per way back. Each voids the steps that it tells anew."""

    def __init__(self, folder: Path, *, next_step: int):
        self._folder = folder
        self._writer = self._open(next_step)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log one step, at the time when it was recorded."""
        step = int(metrics["step"])
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, step, walltime=metrics.get("time/logged_at_s"))

    def flush(self) -> None:
        """Write what was logged."""
        self._writer.flush()

    def go_back(self, step: int) -> None:
        """Begin a file that voids the steps after `step`."""
        self._writer.close()
        self._writer = self._open(step + 1)

    def close(self, state: str) -> None:
        """Write what is left."""
        self._writer.close()

    def _open(self, next_step: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=next_step)
