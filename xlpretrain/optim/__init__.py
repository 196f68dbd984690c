"""The optimizers. To add one, add a file and a line here."""

from typing import Annotated

from xlpretrain.optim.adamw import AdamWConfig
from xlpretrain.optim.base import OptimizerConfig
from xlpretrain.optim.lamb import LambConfig
from xlpretrain.optim.muon import MuonConfig
from xlpretrain.schema import Registry, TaggedUnion

__all__ = ["OPTIMIZERS", "AdamWConfig", "AnyOptimizer", "LambConfig", "MuonConfig", "OptimizerConfig"]

OPTIMIZERS: Registry[OptimizerConfig] = Registry(
    "optimizer", OptimizerConfig, {"adamw": AdamWConfig, "lamb": LambConfig, "muon": MuonConfig}
)

AnyOptimizer = Annotated[OptimizerConfig, TaggedUnion(OPTIMIZERS)]
"""The config of any optimizer, selected by its key `type`."""
