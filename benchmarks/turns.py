"""Worker processes that stay alive and take turns, so that disturbances of the machine affect all of them."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class Served:
    """A process that answers each line with a line of JSON; its first answer means that it is ready."""

    def __init__(self, command: Sequence[object], *, env: Mapping[str, str] | None = None):
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )

    def ask(self, line: str) -> Any:
        """Send a line, and return the answer."""
        self.tell(line)
        return self.answer()

    def tell(self, line: str) -> None:
        """Send a line without waiting for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Read the next answer. Raises EOFError if the process has ended."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise EOFError(f"a worker process ended; run it by hand: {' '.join(map(str, self._process.args))}")

    def close(self) -> None:
        """Stop the process."""
        self._process.communicate()


def spread(values: Sequence[float]) -> str:
    """Format the median, minimum and maximum."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
