"""Checkpoints: atomic, checksummed folders that any engine, ZeRO stage and number of ranks can read.

checkpoints/step-00000100/
  rank-00000.safetensors   what rank 0 owned: `kind|parameter|start` (flat fp32), `memory|first stream` (L S M D)
  rank-00001.safetensors   ...
  manifest.json            state of the run, layout, which range lies in which file, checksums; one over itself
checkpoints/.tmp-<owner>-*   being written or removed by that start of the run; removed by the next
checkpoints/damaged/         what a start had to pass over, with the reason in the name
checkpoints/abandoned/       whole, but newer than the step that the run went back to
checkpoints/kept/            what lay in a checkpoint that was removed, and no save had written

What is named here is imported when it is used: `folders` and `format` need no torch, and neither do their users.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlpretrain.checkpoint.folders import abandon_newer, checkpoint_name, list_checkpoints, step_of
    from xlpretrain.checkpoint.outside import write_weights
    from xlpretrain.checkpoint.read import Restored, find_best, fingerprint, load_weights, load_weights_into, restore
    from xlpretrain.checkpoint.saver import CheckpointConfig, Saver, Votes

__all__ = [
    "CheckpointConfig",
    "Restored",
    "Saver",
    "Votes",
    "abandon_newer",
    "checkpoint_name",
    "find_best",
    "fingerprint",
    "list_checkpoints",
    "load_weights",
    "load_weights_into",
    "restore",
    "step_of",
    "write_weights",
]

_MODULES = ("folders", "outside", "read", "saver")


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from the module that defines it."""
    if name in __all__:
        for module in (import_module(f"{__name__}.{module}") for module in _MODULES):
            if getattr(module, name, None) is not None:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
