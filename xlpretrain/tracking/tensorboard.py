"""The TensorBoard tracker, which writes event files. Torch-free."""

from __future__ import annotations

import io
import itertools
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from xlpretrain.tracking.base import TrackedRun, Tracker, TrackerConfig


class TensorBoardConfig(TrackerConfig):
    """TensorBoard."""

    type: Literal["tensorboard"] = "tensorboard"
    """TensorBoard's event files."""
    folder: Path | None = None
    """Parent folder for the event files of several runs, each in a subfolder of its name, for `tensorboard --logdir`
    (default: `tensorboard` in the run folder)."""

    title = "TensorBoard"
    package = "tensorboard"
    buffer_s = 60.0  # a machine crash may lose what the operating system has not yet written

    def build(self, run: TrackedRun) -> Tracker:
        """Start a new event file."""
        folder = run.folder / "tensorboard" if self.folder is None else self.folder / run.name
        return TensorBoardTracker(folder, next_step=run.next_step)


class TensorBoardTracker(Tracker):
    """Event files, one per attempt and per rollback. Each replaces the steps of earlier files that it logs again.

    They are not written by TensorBoard's own writer, because its thread prints a traceback when the disk is full.
    """

    def __init__(self, folder: Path, *, next_step: int):
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder = folder
        self._waiting = io.BytesIO()
        self._records = RecordWriter(self._waiting)
        self._begin_file(next_step)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log one step, with the time at which it was recorded."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items() if name != "step"]
        at_s = metrics.get("time/logged_at_s", time.time())
        self._add(step=int(metrics["step"]), summary=Summary(value=values), wall_time=at_s)

    def flush(self) -> None:
        """Write what was logged. Raises OSError."""
        rest = self._waiting.getvalue()
        with self._path.open("ab", buffering=0) as file:
            while rest:
                rest = rest[file.write(rest) :]
        self._waiting.seek(0)
        self._waiting.truncate()

    def go_back(self, step: int) -> None:
        """Start a file that discards the steps after `step`."""
        self.flush()
        self._begin_file(step + 1)

    def close(self, state: str) -> None:
        """Write what is left."""
        self.flush()

    def _begin_file(self, next_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
        numbered = (self._folder / f"{name}.{number:04d}" for number in itertools.count())
        self._path = next(path for path in numbered if not path.exists())  # TensorBoard reads files sorted by name
        self._add(file_version="brain.Event:2", wall_time=time.time())
        self._add(step=next_step, session_log=SessionLog(status=SessionLog.START), wall_time=time.time())
        self.flush()

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(**fields).SerializeToString())
