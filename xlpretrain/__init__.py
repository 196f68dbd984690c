"""xlpretrain: distributed pretraining for Transformer-XL, XLNet, ALBERT and BERT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xlpretrain.version import __version__

if TYPE_CHECKING:
    from xlpretrain.evaluation.loaded_run import LoadedRun

__all__ = ["__version__", "load"]


def load(
    run: str | Path, *, step: int | None = None, device: str | None = None, precision: str | None = None
) -> LoadedRun:
    """A trained or imported run, for notebooks: `.model` (in evaluation mode), `.tokenizer`, `.config`, `.step`.

    Args:
        run: its folder, such as runs/quickstart.
        step: of which checkpoint (default: the newest whole one).
        device: such as "cpu" (default: the GPU if there is one).
        precision: of the weights, "fp32" or "bf16" (default: as trained). The likelihood of a sentence in bf16 is off
            by up to 0.1 nats or so.

    Raises:
        LaunchError, CheckpointError: no run there, or no whole checkpoint.
        ConfigError: another precision.
    """
    import torch

    from xlpretrain.engine.config import DTYPES
    from xlpretrain.errors import ConfigError
    from xlpretrain.evaluation.loaded_run import LoadedRun
    from xlpretrain.run_dir.layout import RunDir

    if precision is not None and precision not in DTYPES:
        raise ConfigError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return LoadedRun.load(
        RunDir(Path(run)).check_exists(),
        device=place,
        step=step,
        dtype=DTYPES[precision] if precision is not None else None,
    )
