"""Logs of ranks in the run folder: logs/rank-00000.log and so on. Torch-free.

A rank pipes its output to a small process (this file, run as a program), which passes it on and appends it to the log.
It is a separate process because a rank may be killed in the middle of a line, and because closing a terminal must not
kill the rank.
"""

from __future__ import annotations

import os
import select
import selectors
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

RUN = "XLPRETRAIN_RUN"
"""Environment variable with the run folder, for output before the rank has read its config."""
HEADING = "---"
"""Prefix of the first line of each attempt."""
_OUT, _ERR = 1, 2
_CHUNK_BYTES = select.PIPE_BUF  # a ready pipe accepts this much without blocking
_PATIENCE_S = 1.0
_copier: subprocess.Popen[bytes] | None = None


def heading(where: str) -> str:
    """First line of an attempt in a log, without the line break."""
    return f"{HEADING} {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {where}"


def move_to(path: Path, *, where: str) -> None:
    """Redirect standard output and error of this process and its children, appending to a file. Raises OSError."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), _OUT)
        os.dup2(file.fileno(), _ERR)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(heading(where))


def copy_to(path: Path) -> None:
    """Also append standard error, and standard output unless it is a terminal, to a file.

    A terminal is left alone for the live line, whose writer also writes to the file. Works once per process. If the
    file or the copying process cannot be opened, output stays unchanged.
    """
    global _copier
    if _copier is not None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{heading(f'{os.uname().nodename}, process {os.getpid()}')}\n")
        pipes = {target: os.pipe() for target in (_OUT, _ERR) if not (target == _OUT and os.isatty(_OUT))}
        ends = [f"{read}:{target}" for target, (read, _) in pipes.items()]
        _copier = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(path), *ends],
            stdin=subprocess.DEVNULL,
            pass_fds=[read for read, _ in pipes.values()],
            start_new_session=True,  # a signal to the rank's process group must not cut its last output
        )
        for target, (read, write) in pipes.items():
            os.dup2(write, target)
            os.close(read)
            os.close(write)


def _copy(log: int, sources: dict[int, int]) -> None:
    """Copy each source to its target and the log until all sources end. Drops targets that fail.

    A target that blocks for `_PATIENCE_S` misses output until it is ready again; the log has it.
    """
    dead: set[int] = set()
    stuck: set[int] = set()
    with selectors.DefaultSelector() as selector:
        for source in sources:
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, _CHUNK_BYTES)
                if not data:
                    selector.unregister(key.fd)
                _write_all(log, data)  # retried on errors: a full disk may have space again
                target = sources[key.fd]
                if target in dead or not _is_ready(target, 0.0 if target in stuck else _PATIENCE_S):
                    stuck.add(target)
                    continue
                stuck.discard(target)
                if not _write_all(target, data):
                    dead.add(target)


def _is_ready(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(1000 * timeout_s))


def _write_all(descriptor: int, data: bytes) -> bool:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return False
    return True


if __name__ == "__main__":
    _copy(
        os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND),
        {int(source): int(target) for source, target in (end.split(":") for end in sys.argv[2:])},
    )
