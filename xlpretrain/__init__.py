"""xlpretrain: distributed pretraining for Transformer-XL, XLNet, ALBERT and BERT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlpretrain.version import __version__

if TYPE_CHECKING:
    from xlpretrain.data.storage.webdataset_stream import stream
    from xlpretrain.evaluation.loaded_run import LoadedRun

__all__ = ["__version__", "load", "stream"]


def __getattr__(name: str) -> Any:
    """Import `stream` when it is asked for: every module imports this one."""
    if name != "stream":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xlpretrain.data.storage.webdataset_stream import stream

    return stream


def load(run: str | Path, *, step: int | None = None, device: str | None = None) -> LoadedRun:
    """A trained or imported run, for notebooks: `.model` (in evaluation mode), `.tokenizer`, `.config`, `.step`.

    Args:
        run: its folder, such as runs/quickstart.
        step: of which checkpoint (default: the newest whole one).
        device: such as "cpu" (default: the GPU if there is one).

    Raises:
        LaunchError, CheckpointError: no run there, or no whole checkpoint.
    """
    import torch

    from xlpretrain.evaluation.loaded_run import LoadedRun
    from xlpretrain.run_dir.layout import RunDir

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return LoadedRun.load(RunDir(Path(run)).check_exists(), device=place, step=step)
