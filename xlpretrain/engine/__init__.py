"""Engines, which run training steps: DeepSpeed ZeRO, or plain torch. Importing this does not import DeepSpeed."""

from xlpretrain.engine.base import Engine
from xlpretrain.engine.config import ENGINES, AnyEngine, DeepSpeedConfig, EngineConfig, PlainConfig
from xlpretrain.engine.state_shards import ReadRange, StateShard

__all__ = [
    "ENGINES",
    "AnyEngine",
    "DeepSpeedConfig",
    "Engine",
    "EngineConfig",
    "PlainConfig",
    "ReadRange",
    "StateShard",
]
