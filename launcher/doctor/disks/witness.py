"""Another process that looks at a folder: python -m launcher.doctor.disks.witness FOLDER

It reads questions from standard input and prints answers, one line of JSON each. A process on another node answers the
same questions (`cluster.ranks_on_nodes`). Torch-free.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self


class Witness(Protocol):
    """A process, here or on another node, that answers questions about a folder.

    name: for messages, such as "another process".
    """

    name: str

    def ask(self, question: str, file: str) -> Callable[[], Any]:
        """Ask one of `QUESTIONS` about a file; returns a function that waits for the answer."""
        ...


def create(path: Path) -> bool:
    """Create a file that must not exist; True if it did not."""
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True


def listed(path: Path) -> bool:
    """True if the listing of the folder has the file."""
    return any(other.name == path.name for other in path.parent.iterdir())


def read(path: Path) -> str:
    """Content of a file; empty if it is missing."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def modified(path: Path) -> float:
    """Modification time of a file; 0 if it is missing."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


QUESTIONS: dict[str, Callable[[Path], Any]] = {
    "create": create,
    "exists": Path.exists,
    "listed": listed,
    "modified": modified,
    "read": read,
}


class LocalWitness:
    """A child process on this machine, as a context."""

    name = "another process"

    def __init__(self, folder: Path):
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(BrokenPipeError):
            self._process.communicate()  # closes its standard input

    def ask(self, question: str, file: str) -> Callable[[], Any]:
        """Send a question. Raises OSError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([question, file]) + "\n")
        self._process.stdin.flush()
        lines = self._process.stdout

        def answer() -> Any:
            if not (line := lines.readline()):
                raise OSError(0, "the process that looks at this disk has ended")
            return json.loads(line)

        return answer


def main(folder: Path) -> None:
    """Answer questions until standard input is closed."""
    for line in sys.stdin:
        question, file = json.loads(line)
        print(json.dumps(QUESTIONS[question](folder / file)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
