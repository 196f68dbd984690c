"""The checkpoints that a suite compares: runs, or steps of runs. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xlpretrain.checkpoint.files import (
    MANIFEST,
    DamagedError,
    checkpoint_name,
    list_checkpoints,
    open_manifest,
    parse_step,
)
from xlpretrain.errors import LaunchError, XLPretrainError
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.schema import Problem

ALL = "all"
RANDOM = "random"


@dataclass(frozen=True)
class Subject:
    """A checkpoint, or the random weights that the run's architecture begins with, as step 0.

    path: of the run's folder. fingerprint: SHA-256 of the checkpoint's manifest; empty for random weights.
    """

    path: Path
    step: int
    fingerprint: str

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.path.resolve().name

    @property
    def label(self) -> str:
        """Name of the checkpoint: the run's with the step, or with `random`."""
        return f"{self.run}@{self.step if self.fingerprint else RANDOM}"

    @property
    def checkpoint(self) -> Path | None:
        """Folder of the checkpoint; None for random weights."""
        return None if not self.fingerprint else self.path / "checkpoints" / checkpoint_name(self.step)


def find_subjects(arguments: Sequence[str]) -> tuple[list[Subject], list[Problem]]:
    """The checkpoints that the command names, and what is wrong with the others.

    arguments: run folders (their newest intact checkpoint), RUN@STEP, RUN@all (every checkpoint), RUN@random (random
        weights), or checkpoints.
    """
    found: dict[str, Subject] = {}
    problems: list[Problem] = []
    for argument in arguments:
        try:
            for subject in _find(argument):
                other = found.setdefault(subject.label, subject)
                if other.fingerprint != subject.fingerprint:
                    problems.append((argument, f"has the same name as {other.path}; rename one of the run folders"))
        except XLPretrainError as error:
            problems.append((argument, str(error)))
    return list(found.values()), problems


def _find(argument: str) -> list[Subject]:
    path, asked = Path(argument), ""
    if not path.exists() and "@" in argument:
        name, _, asked = argument.rpartition("@")
        path = Path(name)
    if parse_step(path) is not None and path.parent.name == "checkpoints":
        path, asked = path.parent.parent, str(parse_step(path))
    folder = RunDir(path).check_exists()
    if asked == RANDOM:
        return [Subject(path.absolute(), step=0, fingerprint="")]
    steps = [parse_step(place) or 0 for place in list_checkpoints(folder.checkpoints)]
    if asked and asked != ALL:
        if not asked.isdecimal() or int(asked) not in steps:
            there = ", ".join(map(str, sorted(steps))) or "none"
            raise LaunchError(f"{path}: no checkpoint of step {asked}; there are those of steps {there}")
        return [_open(path, int(asked))]
    if asked == ALL:
        return [_open(path, step) for step in sorted(steps)]
    for step in steps:  # newest first
        with suppress(LaunchError):
            return [_open(path, step)]
    raise LaunchError(f"{path}: no intact checkpoint")


def _open(path: Path, step: int) -> Subject:
    folder = RunDir(path).checkpoints / checkpoint_name(step)
    try:
        open_manifest(folder)
        return Subject(path.absolute(), step, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())
    except (OSError, DamagedError) as error:
        raise LaunchError(f"{folder}: damaged checkpoint ({error})") from None
