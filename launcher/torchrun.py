"""A run on this machine: torchrun's agent inside this process, and an exit code that means something.

torchrun itself answers any failure with a traceback of its own and 1. Here its agent is called as a library, the
ranks have already said what was wrong, and `status.json` tells how the run ended.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

from xlpretrain import lease
from xlpretrain.errors import FENCED, STOPPED_EARLY, USER_ERROR
from xlpretrain.lease import Process
from xlpretrain.run_folder import RunFolder
from xlpretrain.watchdog import LAUNCHER

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
_SIGNALLED = 128


def default_num_processes(num_streams: int) -> int:
    """One per GPU; without any, two on two cores or more. Never more than there are streams."""
    import torch

    gpus = torch.cuda.device_count()
    return min(num_streams, gpus or min(2, len(os.sched_getaffinity(0))))


def launch(module: str, arguments: Sequence[str], *, num_processes: int, grace_s: int = 30) -> int:
    """Run `python -m module arguments` on ranks of this machine.

    grace_s: what the ranks get after a signal to this process, before they are killed. Returns 0, the exit code of the
    first rank that failed (negative: the signal that killed it), or, for a signal to this process, 128 and its number.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    agent = [
        "--standalone",
        f"--nproc-per-node={num_processes}",
        f"--shutdown-timeout={grace_s}",
        f"--signals-to-handle={_SIGNALS}",
        "-m",
        module,
        *arguments,
    ]
    os.environ[LAUNCHER] = json.dumps(Process.this())
    with _quiet_agent(), _own_handlers():
        try:
            main(agent)
        except ChildFailedError as error:
            return int(error.get_first_failure()[1].exitcode)
        except SignalException as error:
            return _SIGNALLED + int(error.sigval)
    return 0


def run(
    config: Path,
    overrides: Sequence[str],
    *,
    folder: RunFolder,
    num_processes: int,
    grace_s: int,
    options: Sequence[str],
    take_over: bool = False,
    max_restarts: int = 0,
) -> int:
    """Train to the end. Returns 0, 2, 75, 76, or 1 for a crash. Raises `LaunchError` if another start has the run.

    After a crash it starts again, up to `max_restarts` times and as long as that brings new checkpoints; never after
    a signal to this process, nor against the user's wish or another start of the run.
    """
    os.environ["XLPRETRAIN_LAUNCH_ID"] = launch_id = secrets.token_hex(8)
    # Rank 0 looks again, and takes it; here, the answer comes at once.
    since = lease.refuse_if_held(folder.lease, launch_id=launch_id, take_over=take_over)
    in_vain = 0
    for restarts_left in range(max_restarts, -1, -1):
        before = _newest_checkpoint(folder)
        arguments = [*options, *(["--take-over"] if take_over else []), str(config), *overrides]
        failed_with = launch("xlpretrain", arguments, num_processes=num_processes, grace_s=grace_s)
        if lease.is_lost(folder.lease, launch_id=launch_id, since=since):
            print(f"error: {folder.path}: another start of the run has taken over", file=sys.stderr)
            return FENCED
        code = _outcome(folder, launch_id, failed_with)
        if code is not None:
            return code
        take_over = False
        in_vain = 0 if _newest_checkpoint(folder) != before else in_vain + 1
        status = folder.read_status()
        crash = f"the run crashed after step {status.step if status else 0}"
        if failed_with > _SIGNALLED or restarts_left == 0 or folder.stop_file.exists():
            print(f"error: {crash}; `xlpretrain resume {folder.path}` goes on", file=sys.stderr)
            break
        if in_vain == 2:
            print(f"error: {crash}, the second time without a new checkpoint: no further restart", file=sys.stderr)
            break
        print(f"{crash}; starting it again ({restarts_left - 1} restarts left)", file=sys.stderr, flush=True)
    return 1


def _outcome(folder: RunFolder, launch_id: str, failed_with: int) -> int | None:
    """The exit code of a start that is over; None if it crashed."""
    status = folder.read_status()
    if status is not None and status.launch_id == launch_id and status.state in ("finished", "stopped", "failed"):
        return status.exit_code
    # Where status.json cannot be written, the code of a rank tells a stop.
    return failed_with if failed_with in (0, USER_ERROR, STOPPED_EARLY) else None


def _newest_checkpoint(folder: RunFolder) -> str:
    return max((path.name for path in folder.checkpoints.glob("step-*")), default="")


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Put this process's signal handlers back afterwards: torchrun leaves its own, which raise what only it catches."""
    numbers = [signal.Signals[name] for name in _SIGNALS.split(",")]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Keep torchrun's own warnings and tracebacks off the terminal; the ranks write to it directly."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # only silences a warning: each rank sets its own threads
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
