"""The contract of trackers: services and files that show a run's metrics while it trains. Torch-free.

A tracker is two classes: a `TrackerConfig`, the item of `trackers:` with its settings, and the `Tracker` that it builds
on rank 0. Both may take their time and may fail: `GuardedTracker` calls them on a thread of their own, so they need
neither timeouts nor `try`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from xlpretrain.errors import ConfigError
from xlpretrain.extras import PACKAGES, is_missing
from xlpretrain.schema import Section


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker shows.

    Attributes:
        id: of the run for its whole life, unique: every attempt has the same.
        name: for people.
        folder: of the run. What a tracker keeps, it keeps in a folder of its own there.
        config: the resolved configuration.
        next_step: the first step that the tracker is told of. If an earlier attempt has told it of this step or later
            ones, it may have lost them, or they were undone.
    """

    id: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    next_step: int = 1


class Tracker(ABC):
    """Shows a run's metrics. All methods are called on one thread, in the order of the steps.

    Whatever they raise, or a call that takes longer than the config's `timeout_s`, switches the tracker off for this
    attempt. The next attempt tells it everything that it was not told, or may have lost.
    """

    @abstractmethod
    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Show the metrics of one step (key `step`)."""

    def flush(self) -> None:
        """Hand on what was logged. Called whenever no further step is waiting."""
        return

    def go_back(self, step: int) -> None:
        """Forget the steps after `step`: the run continues from there, after a loss spike."""
        return

    def close(self, state: str) -> None:
        """Finish this attempt, which is `finished`, `stopped` or `failed`. Nothing is called afterwards."""
        return


class TrackerConfig(Section, ABC):
    """The settings of a tracker."""

    type: str
    """The tracker."""
    title: ClassVar[str] = ""
    """The tracker's name in messages (default: its type)."""
    package: ClassVar[str] = ""
    """The Python package that it needs; nothing may import it before `build` is called."""
    timeout_s: ClassVar[float] = 60.0
    """Seconds that a call of the tracker may take."""
    buffer_s: ClassVar[float] = 0.0
    """Seconds for which a flushed metric may still be lost if the process is killed."""

    @abstractmethod
    def build(self, run: TrackedRun) -> Tracker | None:
        """The tracker of a run, on rank 0; None if it is switched off."""

    @property
    def label(self) -> str:
        """The tracker's name in messages."""
        return self.title or self.type

    @property
    def is_installed(self) -> bool:
        """True if the package that it needs is there, which is not imported."""
        return not self.package or not is_missing(self.package)

    @property
    def how_to_install(self) -> str:
        """The command that installs what it needs."""
        ours = PACKAGES.get(self.package)
        return f'pip install "xlpretrain[{ours.extra}]"' if ours else f"pip install {self.package}"

    def check(self) -> None:
        """Raise `ConfigError` if the tracker cannot work on this machine. Called before a run starts."""
        if not self.is_installed:
            raise ConfigError(
                f"trackers: {self.type} needs the Python package {self.package}, which is not installed;"
                f" {self.how_to_install}"
            )


def describe_failure(error: BaseException) -> str:
    """An exception in one short line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
