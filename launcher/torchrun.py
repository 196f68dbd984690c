"""A run on this machine: torchrun's agent inside this process, and an exit code that means something.

torchrun itself answers any failure with a traceback of its own and 1. Here its agent is called as a library, the
ranks have already said what was wrong, and `status.json` tells how the run ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

from xlpretrain.errors import USER_ERROR
from xlpretrain.run_folder import RunFolder

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"


def default_num_processes(num_streams: int) -> int:
    """One per GPU; without any, two on two cores or more. Never more than there are streams."""
    import torch

    gpus = torch.cuda.device_count()
    return min(num_streams, gpus or min(2, len(os.sched_getaffinity(0))))


def launch(module: str, arguments: Sequence[str], *, num_processes: int, grace_s: int = 30) -> int:
    """Run `python -m module arguments` on ranks of this machine. Returns 0, or the exit code of the first that failed.

    grace_s: what the ranks get after a signal to this process, before they are killed.
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
    with _quiet_agent():
        try:
            main(agent)
        except ChildFailedError as error:
            return int(error.get_first_failure()[1].exitcode)
        except SignalException:
            return 1
    return 0


def run(
    config: Path,
    overrides: Sequence[str],
    *,
    folder: RunFolder,
    num_processes: int,
    grace_s: int,
    options: Sequence[str],
) -> int:
    """Train to the end. Returns 0, 2, 75, or another number for a crash."""
    launch_id = secrets.token_hex(8)
    os.environ["XLPRETRAIN_LAUNCH_ID"] = launch_id
    failed_with = launch(
        "xlpretrain", [*options, str(config), *overrides], num_processes=num_processes, grace_s=grace_s
    )
    status = folder.read_status()
    if status is None or status.launch_id != launch_id:
        return failed_with if failed_with in (0, USER_ERROR) else 1  # it failed before it could say so
    if status.state in ("finished", "stopped", "failed"):
        return status.exit_code
    if failed_with == USER_ERROR:
        return USER_ERROR
    print(
        f"error: the run crashed after step {status.step}; `xlpretrain resume {folder.path}` goes on", file=sys.stderr
    )
    return 1


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
