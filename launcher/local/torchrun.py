"""Ranks on this machine: torchrun's agent in a thread of this process, and an exit code that means something.

torchrun itself answers any failure with a traceback of its own and 1, and its signals and options differ from version
to version. Here its agent only starts and watches the ranks, by options that every version has; what it says is held
back unless it fails itself, and signals are this process's business (interrupts.py).
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from launcher.local.interrupts import Interrupts
from xlpretrain.errors import LaunchError
from xlpretrain.run_dir.lease import Process
from xlpretrain.run_dir.watchdog import LAUNCHER

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Ended:
    """The outcome of the ranks.

    exit_code: 0, or that of the first rank that failed (negative: the signal that killed it); rank: which one that was.
    signal: the first one that this process was sent meanwhile; 0: none.
    """

    exit_code: int = 0
    rank: int = 0
    signal: int = 0

    @property
    def code(self) -> int:
        """An exit code for a command that has nothing to add: as a shell has it for a process that a signal ends."""
        if self.signal and self.exit_code:
            return 128 + self.signal
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code

    def describe(self) -> str:
        """A few words on a rank that failed."""
        if self.exit_code >= 0:
            return f"rank {self.rank} left with exit code {self.exit_code}"
        name = signal.Signals(-self.exit_code).name
        if self.signal:
            return f"rank {self.rank} was ended by {name}, after this launcher had {signal.Signals(self.signal).name}"
        why = " (as the kernel does where memory runs out)" if self.exit_code == -signal.SIGKILL else ""
        return f"rank {self.rank} was killed by {name}{why}"


def default_num_processes(num_streams: int) -> int:
    """One per GPU; without any, two on two cores or more. Never more than there are streams."""
    gpus = torch.cuda.device_count()
    return min(num_streams, gpus or min(2, len(os.sched_getaffinity(0))))


def launch(
    module: str,
    arguments: Sequence[str],
    *,
    num_processes: int,
    grace_s: int = 30,
    cost: Callable[[], str] = lambda: "what it has done so far",
) -> Ended:
    """Run `python -m module arguments` on ranks of this machine, and wait for them. To be called on the main thread.

    grace_s: the time that ranks have to end after a signal to this process, before they are killed. cost: what ending
    them at once would lose. Raises `LaunchError` where torchrun does not start them.
    """
    os.environ[LAUNCHER] = json.dumps(Process.this())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # only silences a warning: each rank sets its own threads
    agent = _Agent(["--standalone", f"--nproc-per-node={num_processes}", "-m", module, *arguments])
    with Interrupts(grace_s=grace_s, cost=cost) as interrupts:
        agent.start()
        while agent.is_alive():
            agent.join(_LOOK_EVERY_S)
            interrupts.look()
    return agent.ended(interrupts.first)


class _Agent(threading.Thread):
    """torchrun, as a library. In a thread, it leaves the handlers of signals alone."""

    def __init__(self, arguments: Sequence[str]):
        super().__init__(name="torchrun", daemon=True)
        self._arguments = list(arguments)
        self._said = io.StringIO()
        self._raised: BaseException | None = None

    def run(self) -> None:
        try:
            with _held_back(self._said):
                torchrun.main(self._arguments)
        except BaseException as error:  # SystemExit, too: of its parser of options
            self._raised = error

    def ended(self, first_signal: int) -> Ended:
        """The outcome. Raises `LaunchError`, after printing its output, if torchrun failed and not a rank."""
        if isinstance(self._raised, ChildFailedError):
            rank, failure = self._raised.get_first_failure()
            return Ended(int(failure.exitcode), int(rank), first_signal)
        if self._raised is not None:
            sys.stderr.write(self._said.getvalue())
            why = f"{type(self._raised).__name__}: {self._raised}"
            raise LaunchError(
                f"torchrun of torch {torch.__version__} failed by itself ({why}), before or beside the ranks; above is"
                " what it said"
            ) from self._raised
        return Ended(signal=first_signal)


@contextmanager
def _held_back(said: io.StringIO) -> Iterator[None]:
    """Keep what torchrun prints and logs off the terminal, and in `said`. Ranks write to the terminal directly."""
    known = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    handlers = {logger: logger.handlers for logger in known if isinstance(logger, logging.Logger) and logger.handlers}
    handlers.setdefault(logging.getLogger(), [])
    try:
        for logger in handlers:
            passes_on = logger.propagate and logger.parent is not None
            logger.handlers = [] if passes_on else [logging.StreamHandler(said)]
        with redirect_stderr(said):
            yield
    finally:
        for logger, before in handlers.items():
            logger.handlers = before
