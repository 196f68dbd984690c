"""What a checkpoint records of the machine and the libraries that made it."""

from __future__ import annotations

from importlib.metadata import version

import torch
from tiny_model import training

from xlpretrain.checkpoint.environment import layout
from xlpretrain.engine.config import PlainConfig
from xlpretrain.version import __version__


def test_a_layout_names_all_that_decides_the_bits(group: None):
    found = layout(training(PlainConfig(), num_streams=2, num_micro_batches=1).engine)
    assert {key: found[key] for key in ("world_size", "engine", "threads", "torch", "numpy", "deepspeed")} == {
        "world_size": 1,
        "engine": "plain",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "deepspeed": None,  # an engine that does not use it does not depend on its version
    }
    assert found["xlpretrain"] == __version__
    assert found["device"], "the processor's name"
