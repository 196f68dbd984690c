"""The origin of a run that was forked from another, kept in its provenance. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xlpretrain.run_dir.layout import RunDir

KEY = "forked_from"
"""Key of the provenance."""


@dataclass(frozen=True)
class Branch:
    """The parent of a forked run.

    run: the parent's folder when the run was forked. id: the parent's id. step: of the checkpoint that the run began
    from. checkpoint: SHA-256 of its manifest. changed: config keys with the parent's and the fork's value.
    """

    run: str
    id: str
    step: int
    checkpoint: str
    changed: Mapping[str, tuple[Any, Any]]

    @property
    def place(self) -> str:
        """The parent and the step, in short: `trunk, step 300`."""
        return f"{Path(self.run).name}, step {self.step:,}"

    def describe(self) -> str:
        """The parent, the step and the changes, in one line."""
        changes = "; ".join(f"{key}: {before!r} -> {now!r}" for key, (before, now) in self.changed.items())
        return f"{self.run}, step {self.step:,}; {changes or 'nothing changed'}"

    def to_provenance(self) -> dict[str, Any]:
        """The entry of the provenance."""
        return {KEY: asdict(self)}


def branch_of(provenance: Mapping[str, Any]) -> Branch | None:
    """The parent that a provenance names; None for a run that is no fork."""
    found = provenance.get(KEY)
    try:
        return None if found is None else Branch(**found)
    except TypeError:  # written by another version
        return None


def read_branch(folder: RunDir) -> Branch | None:
    """The parent of a run; None if it is no fork or its provenance cannot be read."""
    try:
        return branch_of(folder.read_provenance())
    except (OSError, json.JSONDecodeError, AttributeError):
        return None
