"""Checkpoints: atomic, checksummed folders that any engine, ZeRO stage and number of ranks can read.

checkpoints/step-00000100/
  rank-00000.safetensors   what rank 0 owned: `kind|parameter|start` (flat fp32), `memory|first stream` (L S M D)
  rank-00001.safetensors   ...
  manifest.json            state of the run, layout, which range lies in which file, checksums; one over itself
checkpoints/.tmp-*         being written or removed; never read, removed at the next start
checkpoints/damaged/       what a start had to pass over, with the reason in the name
"""

from xlpretrain.checkpoint.format import list_checkpoints
from xlpretrain.checkpoint.read import Restored, load_weights, load_weights_into, restore
from xlpretrain.checkpoint.write import CheckpointConfig, save

__all__ = [
    "CheckpointConfig",
    "Restored",
    "list_checkpoints",
    "load_weights",
    "load_weights_into",
    "restore",
    "save",
]
