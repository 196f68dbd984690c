"""The config of a run: all mistakes in it. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.findings import Finding, failure, passed, skipped
from launcher.doctor.request import Request
from xlpretrain.config import run_config
from xlpretrain.errors import XLPretrainError


def check(request: Request) -> Iterator[Finding]:
    """Load the config."""
    if request.config is None:
        yield skipped("no config given: its data, trackers and checkpoint sizes are not checked")
        return
    try:
        config = run_config.load(Path(request.config), request.overrides)
    except XLPretrainError as error:
        yield failure(str(error), f"correct the config; `xlpretrain config {request.config} --explain` shows every key")
        return
    yield passed(f"{request.config}: {config.model.type}, {config.objective.type}, engine {config.engine.type}")
