"""The subject of an examination: a config or none, the number of ranks, a site profile. Torch-free."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from xlpretrain.errors import XLPretrainError

if TYPE_CHECKING:  # imported late: torch takes seconds
    from xlpretrain.config.run_config import RunConfig

SCRATCH = ".xlpretrain-doctor-"
"""Prefix of the folders that checks make and remove."""


@dataclass(frozen=True)
class Request:
    """The subject of an examination, passed to each check.

    Attributes:
        config: config file of a run.
        overrides: `key=value` changes to the config.
        num_processes: number of ranks on this machine; None: as `train` would choose.
        num_gpus: number of GPUs that a node must have; None: any.
        runs_dir: folder of runs; None: the config's, or `runs`.
        cluster: site profile.
        nodes: number of nodes, in place of the profile's.
        queue_s: seconds to wait for nodes.
        token: part of the name of every folder that a check makes.
    """

    config: str | None = None
    overrides: tuple[str, ...] = ()
    num_processes: int | None = None
    num_gpus: int | None = None
    runs_dir: str | None = None
    cluster: str | None = None
    nodes: str | None = None
    queue_s: int = 60
    token: str = "0"

    def to_json(self) -> str:
        """The fields as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Parse `to_json`."""
        content = json.loads(text)
        return cls(**{**content, "overrides": tuple(content["overrides"])})

    def load_config(self) -> RunConfig | None:
        """Load the config once per process; None without one or if it is invalid, which the check `config` reports."""
        return _load(self.config, self.overrides)

    @property
    def runs_folder(self) -> Path:
        """Folder of runs; it may not exist yet."""
        config = self.load_config()
        return Path(self.runs_dir or (config.runs_dir if config else "runs"))


@cache
def _load(path: str | None, overrides: tuple[str, ...]) -> RunConfig | None:
    if path is None:
        return None
    from xlpretrain.config import run_config

    try:
        return run_config.load(Path(path), overrides)
    except XLPretrainError:
        return None
