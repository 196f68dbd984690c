"""Ends a rank that would otherwise wait for ever: for one that hangs, for one that died, for a launcher that is gone.

A thread looks once a second. It counts its own looks and not the clock, so that a run which somebody suspends and
continues (a scheduler may) is none that hangs.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Self

from pydantic import Field

from xlpretrain.errors import HUNG, LeaseLostError
from xlpretrain.run_dir.lease import Lease, Process, leave
from xlpretrain.schema import Section

LAUNCHER = "XLPRETRAIN_LAUNCHER"
"""The environment variable in which a launcher says who it is: a `Process`, as JSON."""
_LOOK_EVERY_S = 1.0
_FOR_OTHERS_S = 3.0  # between a rank's stacks and its end, which ends the others: they shall leave theirs too


class WatchdogConfig(Section):
    """Limits after which a run that makes no progress is ended, so that it can be restarted."""

    timeout_s: float = Field(1800, gt=0)
    """Seconds that a step, or a batch of an evaluation, may take; then stacks go to logs/, and the run ends."""
    startup_s: float = Field(1800, ge=0)
    """Seconds more until the first step of a start is done: it reads a checkpoint, and may compile."""

    @property
    def collective_timeout_s(self) -> float:
        """For the process group: late enough that the watchdog, which says where a rank hangs, comes first."""
        return 2 * (self.timeout_s + self.startup_s)


class Watchdog:
    """One rank's. Watches the launcher at once, and progress and the other ranks of this machine from `guard` on.

    A context manager: it ends, with all that it watches for, when the rank leaves of itself.
    """

    def __init__(self) -> None:
        self._launcher = _launcher()
        self._peers: list[Process] = []
        self._left_s = float("inf")
        self._timeout_s = float("inf")
        self._stacks: Path | None = None
        self._lease: Lease | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def guard(self, config: WatchdogConfig, *, peers: Sequence[Process], lease: Lease, stacks: Path) -> None:
        """Watch progress from now on, and `peers`, the ranks of this run.

        stacks: the file for this rank's stacks, should it hang while it has the lease.
        """
        self._peers, self._lease, self._stacks = list(peers), lease, stacks
        self._timeout_s, self._left_s = config.timeout_s, config.timeout_s + config.startup_s

    def progress(self) -> None:
        """Something is done: the time for the next begins."""
        self._left_s = self._timeout_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer: from here on, ranks may end at different times."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            if self._launcher is not None and self._launcher.is_dead:
                _end(1, "its launcher is gone")
            for peer in self._peers:
                if peer.is_dead:
                    _end(1, f"the rank that was process {peer.pid} is gone")
            self._left_s -= _LOOK_EVERY_S
            if self._left_s < 0:
                self._hangs()

    def _hangs(self) -> NoReturn:
        assert self._lease is not None and self._stacks is not None, "only what is guarded can hang"
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
        time.sleep(_FOR_OTHERS_S)
        for peer in self._peers:  # one may be unable to end itself
            if peer.is_same_machine and peer.pid != os.getpid() and not peer.is_dead:
                with suppress(ProcessLookupError):
                    os.kill(peer.pid, signal.SIGKILL)
        _end(HUNG, f"no progress for {self._timeout_s:g} s; where it hangs is in {self._stacks}")


def _launcher() -> Process | None:
    """The launcher of this rank: the process that declares itself, since it may be dead already; else the parent.

    None for a process that is no rank: a shell's child may outlive it.
    """
    if "RANK" not in os.environ:
        return None
    told = os.environ.get(LAUNCHER)
    return Process(*json.loads(told)) if told else Process.of(os.getppid())


def _end(code: int, reason: str) -> NoReturn:
    print(f"error: rank {os.environ.get('RANK', '0')} ends: {reason}", file=sys.stderr, flush=True)
    os._exit(code)
