"""Find run folders, including incomplete ones, and read their newest metrics. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.slurm.records import SlurmFolder
from xlpretrain.errors import ConfigError, LaunchError
from xlpretrain.run_dir.layout import NAME, NAME_RULE, RunDir

if TYPE_CHECKING:  # torch takes seconds
    pass


_MAX_DEPTH = 4
_TAIL_BYTES = 1 << 17


def list_runs(folder: Path) -> list[RunDir]:
    """The runs in a folder and its subfolders, sorted by name. Raises `LaunchError` if the folder does not exist."""
    if not folder.is_dir():
        raise LaunchError(f"{folder}: no such folder; set the folder that holds your runs with --runs-dir DIR")
    return list(_find(folder, _MAX_DEPTH))


def require(path: Path) -> RunDir:
    """The run in a folder, started or submitted. Raises `LaunchError` if there is none."""
    run = RunDir(path)
    if is_run(run):
        return run
    raise run.missing()


def at_its_place(path: Path, overrides: Sequence[str]) -> list[str]:
    """Add overrides that make a run resume in its current folder, even if it was moved or copied.

    Raises `ConfigError` if the overrides set `name` or `runs_dir`.
    """
    place = path.absolute()
    wrong = [override for override in overrides if override.partition("=")[0].strip() in ("name", "runs_dir")]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: a run resumes in its own folder, {place}; move the folder instead")
    if not re.fullmatch(NAME, place.name):
        raise ConfigError(
            f"{place}: a run is named after its folder; names must {NAME_RULE}, got {place.name!r}; rename the folder"
        )
    quoted = (json.dumps(str(part), ensure_ascii=False) for part in (place.parent, place.name))  # as YAML reads them
    return [f"{key}={part}" for key, part in zip(("runs_dir", "name"), quoted, strict=True)] + list(overrides)


def is_run(run: RunDir) -> bool:
    """True if the folder holds a run, started or submitted."""
    slurm = SlurmFolder.of(run)
    return run.exists() or run.status.is_file() or slurm.job.is_file() or slurm.config.is_file()


def last_metrics(run: RunDir) -> list[dict[str, Any]]:
    """The last complete lines of the metrics file; an empty list if there are none yet."""
    try:
        with run.metrics.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines if size <= _TAIL_BYTES else lines[1:]:
        try:
            row = json.loads(line)
        except ValueError:  # the last line may be incomplete
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _find(folder: Path, depth: int) -> Iterator[RunDir]:
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in below:
        if is_run(RunDir(path)):
            yield RunDir(path)
        elif depth > 1:
            yield from _find(path, depth - 1)
