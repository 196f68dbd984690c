"""The tracker interface: services and files that show a run's metrics during training. Torch-free.

A tracker is two classes: a `TrackerConfig`, the item of `trackers:` with its settings, and the `Tracker` that it builds
on rank 0. Both may be slow and may fail: `GuardedTracker` calls them on a separate thread, so they need neither
timeouts nor `try`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xlpretrain.errors import ConfigError
from xlpretrain.extras import how_to_install, is_missing
from xlpretrain.schema import Section


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker shows.

    Attributes:
        id: unique id of the run, the same for every attempt.
        name: display name.
        folder: the run folder. A tracker stores its files in its own subfolder.
        config: the resolved configuration.
        next_step: the first step that will be logged. An earlier attempt may already have logged this step or later
            ones; they were undone, or may have been lost.
    """

    id: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    next_step: int = 1


class Tracker(ABC):
    """Shows a run's metrics. All methods are called on one thread, in the order of the steps.

    Any exception, or a call that takes longer than the config's `timeout_s`, switches the tracker off for this attempt.
    The next attempt logs again everything that the tracker missed or may have lost.

    Attributes:
        url: web page of the run, without credentials; empty if there is none. Set by the constructor.
    """

    url: str = ""

    @abstractmethod
    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Show the metrics of one step (key `step`)."""

    def flush(self) -> None:
        """Send what was logged. Called whenever no further step is waiting."""
        return

    def go_back(self, step: int) -> None:
        """Discard the steps after `step`: the run was rolled back to it after a loss spike."""
        return

    def close(self, state: str) -> None:
        """Close at the end of an attempt. state: `finished`, `stopped` or `failed`. Nothing is called afterwards."""
        return


class TrackerConfig(Section, ABC):
    """The settings of a tracker."""

    type: str
    """The tracker."""
    title: ClassVar[str] = ""
    """The tracker's name in messages (default: its type)."""
    package: ClassVar[str] = ""
    """The Python package it requires; it must not be imported before `build` is called."""
    timeout_s: ClassVar[float] = 60.0
    """Longest time that one call of the tracker may take, in seconds."""
    buffer_s: ClassVar[float] = 0.0
    """Seconds for which a flushed metric may still be lost if the process is killed."""

    @abstractmethod
    def build(self, run: TrackedRun) -> Tracker | None:
        """Build the tracker of a run, on rank 0; None if it is disabled."""

    @property
    def label(self) -> str:
        """The tracker's name in messages."""
        return self.title or self.type

    @property
    def is_installed(self) -> bool:
        """True if the required package is installed; checked without importing it."""
        return not self.package or not is_missing(self.package)

    @property
    def how_to_install(self) -> str:
        """The command that installs the required package."""
        return how_to_install(self.package)

    def check(self) -> None:
        """Raise `ConfigError` if the tracker cannot work on this machine. Called before a run starts."""
        if not self.is_installed:
            raise ConfigError(
                f"trackers: {self.type} needs the Python package {self.package}, which is not installed;"
                f" {self.how_to_install}"
            )


def describe_failure(error: BaseException) -> str:
    """Format an exception as one line of at most 200 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
