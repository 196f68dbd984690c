"""Kill a rank that would otherwise wait forever: for a hung rank, a dead rank, or a dead launcher.

A thread checks once a second. It counts its own checks rather than clock time, so that a run that is suspended and
continued, as schedulers do, does not count as hung.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Self

from pydantic import Field

from xlpretrain.errors import HUNG, LeaseLostError
from xlpretrain.run_dir.lease import Lease, Process, leave
from xlpretrain.schema import Section

LAUNCHER = "XLPRETRAIN_LAUNCHER"
"""Environment variable with the launcher's `Process` as JSON."""
NO_PROGRESS = "no progress for"
"""Beginning of the reason with which a hung rank ends."""
_LOOK_EVERY_S = 1.0
_FOR_OTHERS_S = 3.0  # between writing stacks and exiting, so that the other ranks can write theirs


class WatchdogConfig(Section):
    """Time limits after which a run without progress is killed, so that it can restart."""

    timeout_s: float = Field(1800, gt=0)
    """Maximum seconds per step or evaluation batch; then ranks write their stacks to logs/ and exit."""
    startup_s: float = Field(1800, ge=0)
    """Extra seconds for the first step of an attempt, which reads a checkpoint and may compile."""

    @property
    def collective_timeout_s(self) -> float:
        """Timeout of the process group: longer than the watchdog's, which also shows where a rank hangs."""
        return 2 * (self.timeout_s + self.startup_s)


class Watchdog:
    """Watchdog of a rank. Watches the launcher at once; from `guard` on also progress and local ranks.

    A context manager: leaving the context ends the watch.

    Attributes:
        on_hang: called with the reason before a hung rank ends itself; it has a few seconds.
    """

    def __init__(self) -> None:
        self.on_hang: Callable[[str], object] = lambda reason: None
        self._launcher = _launcher()
        self._peers: list[Process] = []
        self._left_s = float("inf")
        self._timeout_s = float("inf")
        self._limit_s = float("inf")
        self._stacks: Path | None = None
        self._lease: Lease | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def guard(self, config: WatchdogConfig, *, peers: Sequence[Process], lease: Lease, stacks: Path) -> None:
        """Start watching progress and `peers`, the ranks of this run.

        stacks: file for this rank's stacks if it hangs while it owns the lease.
        """
        self._peers, self._lease, self._stacks = list(peers), lease, stacks
        self._timeout_s = config.timeout_s
        self._limit_s = self._left_s = config.timeout_s + config.startup_s

    def progress(self, limit_s: float | None = None) -> None:
        """Report progress: restarts the timeout. limit_s: seconds until it, this once (default: `timeout_s`)."""
        self._limit_s = self._left_s = self._timeout_s if limit_s is None else limit_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching: from here on, ranks may exit at different times."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            if self._launcher is not None and self._launcher.is_dead:
                _end(1, "its launcher is gone")
            for peer in self._peers:
                if peer.is_dead:
                    _end(1, f"another rank (process {peer.pid}) is gone")
            self._left_s -= _LOOK_EVERY_S
            if self._left_s < 0:
                self._hangs()

    def _hangs(self) -> NoReturn:
        assert self._lease is not None and self._stacks is not None, "guard was called"
        try:
            self._lease.check()
        except LeaseLostError as error:
            leave(error)
        except OSError:
            pass
        with suppress(OSError):
            self._stacks.parent.mkdir(exist_ok=True)
            with self._stacks.open("w", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {os.uname().nodename}, process {os.getpid()}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        reason = f"{NO_PROGRESS} {self._limit_s:g} s; see its stacks in {self._stacks}"
        self.on_hang(reason)
        time.sleep(_FOR_OTHERS_S)
        for peer in self._peers:  # a hung rank may be unable to exit
            if peer.is_same_machine and peer.pid != os.getpid() and not peer.is_dead:
                with suppress(ProcessLookupError):
                    os.kill(peer.pid, signal.SIGKILL)
        _end(HUNG, reason)


def _launcher() -> Process | None:
    """Launcher of this rank: the process in `LAUNCHER` (it may be dead already), else the parent.

    None outside of a launcher: a shell may exit before its child.
    """
    if "RANK" not in os.environ:
        return None
    launcher = os.environ.get(LAUNCHER)
    return Process(*json.loads(launcher)) if launcher else Process.of(os.getppid())


def _end(code: int, reason: str) -> NoReturn:
    print(f"error: rank {os.environ.get('RANK', '0')} exits: {reason}", file=sys.stderr, flush=True)
    os._exit(code)
