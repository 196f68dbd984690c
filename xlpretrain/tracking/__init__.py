"""The metrics file, trackers, plots and the console. To add a tracker, add a file and a line here."""

from typing import Annotated

from xlpretrain.schema import Registry, TaggedUnion
from xlpretrain.tracking.base import TrackerConfig
from xlpretrain.tracking.mlflow import MlflowConfig
from xlpretrain.tracking.tensorboard import TensorBoardConfig
from xlpretrain.tracking.wandb import WandbConfig

__all__ = ["TRACKERS", "AnyTracker", "MlflowConfig", "TensorBoardConfig", "TrackerConfig", "WandbConfig"]

TRACKERS: Registry[TrackerConfig] = Registry(
    "tracker", TrackerConfig, {"wandb": WandbConfig, "tensorboard": TensorBoardConfig, "mlflow": MlflowConfig}
)

AnyTracker = Annotated[TrackerConfig, TaggedUnion(TRACKERS)]
"""The config of any tracker, selected by its key `type`."""
