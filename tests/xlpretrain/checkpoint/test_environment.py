"""What a checkpoint records of the machine and the libraries that made it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tiny_model import training

from xlpretrain.checkpoint.environment import layout
from xlpretrain.engine.config import PlainConfig
from xlpretrain.version import __version__, version_of


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
    assert found["matmul_precision"] == "highest"
    assert found["device"], "the processor's name"


def test_a_package_without_metadata_tells_its_version_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bare_of_metadata.py").write_text('__version__ = "1.2"\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert version_of("numpy") == version("numpy")
    assert version_of("bare_of_metadata") == "1.2"
    assert version_of("launcher") == "unknown"
