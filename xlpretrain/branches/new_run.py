"""New run folders made from another run, complete or not there at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xlpretrain import schema
from xlpretrain.checkpoint.files import checkpoint_name, list_checkpoints, parse_step
from xlpretrain.config import origin
from xlpretrain.config.run_config import RunConfig
from xlpretrain.errors import CheckpointError, LaunchError
from xlpretrain.file_system.atomic_dirs import publish_dir, temporary_folder
from xlpretrain.run_dir.layout import RunDir

_OWN = ("id", "wandb_id", "forked_from", "averaged_from")
"""Keys of the provenance that a new run does not inherit."""


def refuse_existing(folder: RunDir) -> None:
    """Raise `LaunchError` if there is anything at the place of a new run."""
    if os.path.lexists(folder.path):
        raise LaunchError(f"{folder.path}: already exists; choose another name (--name)")


def find_checkpoints(parent: RunDir, steps: Sequence[int]) -> list[Path]:
    """The checkpoints of a run at these steps. Raises `CheckpointError` that lists those that exist."""
    there = sorted(parse_step(path) or 0 for path in list_checkpoints(parent.checkpoints))
    if not there:
        raise CheckpointError(f"{parent.path}: has no checkpoints")
    missing = [str(step) for step in steps if step not in there]
    if missing:
        known = ", ".join(map(str, there))
        raise CheckpointError(f"{parent.path}: no checkpoint of step {', '.join(missing)}; there are those of {known}")
    return [parent.checkpoints / checkpoint_name(step) for step in steps]


def beside(parent: RunDir) -> Path:
    """The folder that holds a run's folder."""
    place = parent.path
    return place.parent if place.name not in ("", "..") else Path(os.path.abspath(place)).parent  # noqa: PTH100 (..)


def moved_to(config: RunConfig, *, name: str, runs_dir: Path) -> RunConfig:
    """The config of a run in another folder. Raises `ConfigError` if that cannot be a run's name."""
    place = {"name": name, "runs_dir": str(runs_dir)}
    return schema.validate(RunConfig, config.model_dump(mode="json") | place, str(runs_dir / name))


def inherited(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance of a new run that goes on with the data and tokenizer of another."""
    kept = {key: value for key, value in provenance.items() if key not in _OWN}
    return {**kept, **origin.begun_here(), "id": secrets.token_hex(4)}


@contextmanager
def written_whole(folder: RunDir) -> Iterator[RunDir]:
    """A temporary run folder, renamed to `folder` when the block ends without an error, else removed.

    Raises `LaunchError` if it cannot be written.
    """
    try:
        with temporary_folder(folder.path) as path:
            yield RunDir(path)
            publish_dir(path, folder.path)
    except OSError as error:
        raise LaunchError(f"{folder.path}: cannot be written: {error.strerror or error}") from None
