"""The optimizers. A new one is a file and a line here."""

from typing import Annotated

from xlpretrain.optimizers.adamw import AdamWConfig
from xlpretrain.optimizers.lamb import LambConfig
from xlpretrain.optimizers.optimizer import OptimizerConfig
from xlpretrain.schema import Choice

__all__ = ["OPTIMIZERS", "AdamWConfig", "AnyOptimizer", "LambConfig", "OptimizerConfig"]

OPTIMIZERS: dict[str, type[OptimizerConfig]] = {"adamw": AdamWConfig, "lamb": LambConfig}

AnyOptimizer = Annotated[OptimizerConfig, Choice(OPTIMIZERS)]
"""The config of any optimizer, told by its key `type`."""
