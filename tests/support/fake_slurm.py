"""Commands of Slurm that say what a test wants, and write down what they were asked. All others are missing."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

UNKNOWN = "slurm_load_jobs error: Invalid job id specified"


class FakeSlurm:
    """A PATH on which only these commands are."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self._bin, self._asked = folder / "bin", folder / "asked"
        self._bin.mkdir()
        monkeypatch.setenv("PATH", str(self._bin))

    def has(self, command: str, says: str = "", *, error: str = "") -> None:
        """From now on there is such a command. error: what it says on stderr, with exit code 1."""
        end = f"echo {shlex.quote(error)} >&2; exit 1" if error else ""
        script = self._bin / command
        script.write_text(
            f'#!/bin/sh\necho {command} "$*" >> {self._asked}\n/bin/cat <<"END"\n{says}\nEND\n{end}\n', encoding="utf-8"
        )
        script.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """All commands so far, with their arguments."""
        return self._asked.read_text().splitlines() if self._asked.exists() else []
