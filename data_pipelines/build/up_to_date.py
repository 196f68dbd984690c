"""Finished datasets: comparison with a config, and their splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.config import DataConfig
from data_pipelines.sharding.claims import INDEX, claims
from data_pipelines.sharding.stats import dataset_folders
from data_pipelines.sources.find import STANDARD_INPUT
from data_pipelines.sources.records import fingerprint
from data_pipelines.stages.plan import current_settings, describe_settings
from xlpretrain.data.storage.dataset import TokenDataset, read_index
from xlpretrain.errors import DataError
from xlpretrain.file_system.atomic_dirs import final_place, named, tidy, unclaimed


def is_up_to_date(config: DataConfig, console: Console, *, force: bool) -> bool:
    """True if `config.out` is the dataset that the config describes. force: always False, to rebuild it.

    Raises `DataError` if `config.out` is anything else; with `force`, if it has files besides a dataset.
    """
    out = config.out
    try:
        tidy(final_place(out), claims=claims)
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return False
        own = claims(out) if out.is_dir() else []
        others = unclaimed(out, own) if own else []
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from None
    if not own:
        advice = "--force replaces only datasets, so choose another `out`" if force else "choose another `out`"
        there = named(sorted(path.relative_to(out) for path in out.iterdir())) if out.is_dir() else "a file"
        raise DataError(f"{out}: exists, but is not a dataset built here (found {there}); {advice}")
    if force and others:
        raise DataError(
            f"{out}: --force removes only the dataset's own files, and {named(others)} is not one; move it away, or"
            " choose another `out`"
        )
    if force:
        return False
    found = read_index(out / next(path for path in own if path.name == INDEX).parent).get("built_from", {})
    if current_settings(found.get("settings") or {}) != describe_settings(config):
        raise DataError(f"{out}: was built with other settings; choose another `out`, or replace it with --force")
    console.print(f"{out}: already built with these settings", highlight=False)
    if _have_sources_changed(config, found):
        console.print("the sources have changed since; use --force to rebuild", highlight=False)
    return True


def open_splits(out: Path) -> dict[str, TokenDataset]:
    """The splits of a finished dataset, by their paths in it. Raises `DataError`."""
    folders = sorted(dataset_folders(out), key=lambda f: (f.parent, ("train", "valid", "test").index(f.name)))
    return {str(folder.relative_to(out)): TokenDataset.open(folder) for folder in folders}


def _have_sources_changed(config: DataConfig, found: Mapping[str, Any]) -> bool:
    if any(getattr(source, "path", None) == STANDARD_INPUT for source in config.sources):
        return False
    try:
        files = [file for source in config.sources for file in source.find_files()]
    except DataError:  # a finished dataset does not need its sources
        return False
    return fingerprint(files) != found.get("fingerprint")
