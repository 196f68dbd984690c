"""Run checks in a child process, end those that exceed their time limit, and remove what they leave. Torch-free."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.doctor.checks import CHECKS
from launcher.doctor.findings import Finding, failure, warning
from launcher.doctor.request import SCRATCH, Request

_START_S = 60.0
"""Time for the worker to begin its first check."""
_LEAVING_S = 5.0


def examine(request: Request, names: Sequence[str]) -> Generator[Finding]:
    """Run checks by name; yields findings as they are made. Closing the iterator ends the worker and cleans up."""
    left, made = list(names), list[Path]()
    try:
        while left:
            yield from _run(request, left, made)
    finally:
        remaining = remove(made, request.token)
    for path in remaining:
        yield warning(f"{path} could not be removed", "remove the folder once its disk answers")


def remove(made: Sequence[Path], token: str) -> list[Path]:
    """Remove folders that a killed worker left. Returns those that remain, such as on a disk that hangs."""
    ours = [path for path in made if path.name.startswith(f"{SCRATCH}{token}")]

    def sweep() -> None:
        for path in ours:
            shutil.rmtree(path, ignore_errors=True)
        ours[:] = [path for path in ours if path.exists()]

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    thread.join(_LEAVING_S)
    return list(ours)


def _run(request: Request, left: list[str], made: list[Path]) -> Iterator[Finding]:
    """Run checks in one worker, to their end or to the first that has to be ended. Removes begun ones from `left`."""
    worker = _Worker(request, left)
    current, deadline = "", time.monotonic() + _START_S
    try:
        while (message := worker.read(deadline)) is not None:
            if "done" in message:
                return
            if "begin" in message:
                current = message["begin"]
                left.remove(current)
                deadline = time.monotonic() + CHECKS[current].limit_s
            elif "made" in message:
                made.append(Path(message["made"]))
            elif "finding" in message:
                yield Finding.from_dict(message["finding"])
        why = worker.why(CHECKS[current].limit_s if current else _START_S)
    finally:
        worker.end()
    name = current or left.pop(0)  # else the next worker would fail as well, for ever
    yield Finding(**{**vars(why), "check": name})


class _Worker:
    def __init__(self, request: Request, names: Sequence[str]):
        self._said = os.memfd_create("doctor")  # its standard error
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launcher.doctor.worker", *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C reaches the parent only
        )
        self._rest = b""
        self._lines: list[bytes] = []
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{request.to_json()}\n".encode())
            self._process.stdin.flush()

    def read(self, deadline: float) -> dict[str, Any] | None:
        """The next message; None at the end of its output or at the deadline."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while not self._lines:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(descriptor, 1 << 16) if ready else b""
            if not data:
                return None
            *self._lines, self._rest = (self._rest + data).split(b"\n")
        message: dict[str, Any] = json.loads(self._lines.pop(0))
        return message

    def why(self, limit_s: float) -> Finding:
        """A failure that tells why the current check has no result."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # its output may have ended a moment before
        code = self._process.poll()
        if code is None:
            return failure(
                f"no result within {limit_s:g} s; ended", "a device, disk or service that it asks does not answer"
            )
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = os.pread(self._said, 1 << 16, 0).decode(errors="replace").strip().splitlines()
        return failure(f"the check crashed with {name}" + (f": {lines[-1]}" if lines else ""), "please report it")

    def end(self) -> None:
        """End the worker: it removes its folders when its standard input closes, and is killed if it does not exit."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVING_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # also its child processes
        with suppress(subprocess.TimeoutExpired):  # one that waits for a disk cannot even be killed
            self._process.wait(1.0)
        self._process.stdout.close()
        os.close(self._said)
