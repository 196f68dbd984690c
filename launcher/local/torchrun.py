"""Start ranks on this machine with torchrun's agent in a thread, and report a meaningful exit code.

torchrun reports any failure as a traceback and exit code 1, and its signal handling and options vary between versions.
Here its agent only starts and watches the ranks, with options that every version has. Its output is withheld unless
torchrun itself fails, and this process handles signals (interrupts.py).
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
    """Outcome of the ranks.

    exit_code: 0, or that of the first rank that failed (negative: killed by this signal). rank: number of that rank.
    signal: first signal that this process received meanwhile; 0: none.
    """

    exit_code: int = 0
    rank: int = 0
    signal: int = 0

    @property
    def code(self) -> int:
        """Exit code for the command; for a signal, 128 plus its number, as in a shell."""
        if self.signal and self.exit_code:
            return 128 + self.signal
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code

    def describe(self) -> str:
        """One phrase on the rank that failed, for messages."""
        if self.exit_code >= 0:
            return f"rank {self.rank} exited with code {self.exit_code}"
        name = signal.Signals(-self.exit_code).name
        if self.signal:
            return (
                f"rank {self.rank} was killed by {name} after the launcher received {signal.Signals(self.signal).name}"
            )
        why = " (possibly out of memory)" if self.exit_code == -signal.SIGKILL else ""
        return f"rank {self.rank} was killed by {name}{why}"


def default_num_processes(num_streams: int) -> int:
    """Default number of ranks: one per GPU; without GPUs, one per core up to two. At most `num_streams`."""
    gpus = torch.cuda.device_count()
    return min(num_streams, gpus or min(2, len(os.sched_getaffinity(0))))


def launch(
    module: str,
    arguments: Sequence[str],
    *,
    num_processes: int,
    grace_s: int = 30,
    cost: Callable[[], str] = lambda: "all its work so far",
) -> Ended:
    """Run `python -m module arguments` as ranks on this machine and wait for them. Call it on the main thread.

    grace_s: seconds between a signal to this process and killing the ranks. cost: describes what killing them at once
    would lose. Raises `LaunchError` if torchrun itself fails.
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
    """torchrun as a library, in a thread, where it cannot install signal handlers."""

    def __init__(self, arguments: Sequence[str]):
        super().__init__(name="torchrun", daemon=True)
        self._arguments = list(arguments)
        self._said = io.StringIO()
        self._raised: BaseException | None = None

    def run(self) -> None:
        try:
            with _held_back(self._said):
                torchrun.main(self._arguments)
        except BaseException as error:  # also SystemExit from its option parser
            self._raised = error

    def ended(self, first_signal: int) -> Ended:
        """Outcome of the ranks. If torchrun itself failed, prints its output and raises `LaunchError`."""
        if isinstance(self._raised, ChildFailedError):
            rank, failure = self._raised.get_first_failure()
            return Ended(int(failure.exitcode), int(rank), first_signal)
        if self._raised is not None:
            sys.stderr.write(self._said.getvalue())
            why = f"{type(self._raised).__name__}: {self._raised}"
            raise LaunchError(
                f"torchrun of torch {torch.__version__} itself failed ({why}), not a rank; its output is above"
            ) from self._raised
        return Ended(signal=first_signal)


@contextmanager
def _held_back(said: io.StringIO) -> Iterator[None]:
    """Redirect what torchrun prints and logs to `said`. Ranks write to the terminal directly."""
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
