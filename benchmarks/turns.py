"""Sides of a comparison that stay alive and take turns: what the machine does to one, it does to the others."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class Served:
    """A process that answers each line with a line of JSON; its first answer says that it is ready."""

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
        """What it answers."""
        self.tell(line)
        return self.answer()

    def tell(self, line: str) -> None:
        """Ask, and get the answer later."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The next one. Raises EOFError if it has ended."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise EOFError(f"a side ended; run it by hand: {' '.join(map(str, self._process.args))}")

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def spread(values: Sequence[float]) -> str:
    """The median, the least and the most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
