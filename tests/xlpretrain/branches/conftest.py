"""A trained run, from which others branch off."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from branched_runs import train_trunk

from xlpretrain.run_dir.layout import RunDir


@pytest.fixture(scope="session")
def trained(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained trunk, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", "64")  # one thread
        return train_trunk(tmp_path_factory.mktemp("trunk"), tiny_dataset)


@pytest.fixture
def trunk(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy of the trunk."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    return RunDir(shutil.copytree(trained, tmp_path / "runs" / "trunk"))
