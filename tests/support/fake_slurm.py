"""Fake Slurm commands with given output, which record their arguments. All other commands are missing."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

UNKNOWN = "slurm_load_jobs error: Invalid job id specified"


class FakeSlurm:
    """A PATH that only contains the fake commands."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self._bin, self._asked = folder / "bin", folder / "asked"
        self._bin.mkdir()
        monkeypatch.setenv("PATH", str(self._bin))

    def has(self, command: str, says: str = "", *, error: str = "") -> None:
        """Add a command with this output. error: message on stderr; the exit code is then 1."""
        end = f"echo {shlex.quote(error)} >&2; exit 1" if error else ""
        script = self._bin / command
        script.write_text(
            f'#!/bin/sh\necho {command} "$*" >> {self._asked}\n/bin/cat <<"END"\n{says}\nEND\n{end}\n', encoding="utf-8"
        )
        script.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """All commands run so far, with their arguments."""
        return self._asked.read_text().splitlines() if self._asked.exists() else []
