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
    """Import `stream` on first use, since every module imports this one."""
    if name != "stream":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xlpretrain.data.storage.webdataset_stream import stream

    return stream


def load(
    run: str | Path,
    *,
    step: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    weights: str = "trained",
    part: str | None = None,
) -> LoadedRun:
    """Load a trained or imported run: `.model` (in evaluation mode), `.tokenizer`, `.config`, `.step`.

    Args:
        run: run folder, such as runs/quickstart.
        step: checkpoint to load (default: the newest intact one).
        device: such as "cpu" (default: the GPU if there is one).
        precision: of the weights, "fp32" or "bf16" (default: as trained). In bf16, log-likelihoods of sentences are
            off by up to about 0.1 nats.
        weights: "trained", or "average" for their moving average, if the run keeps one (optimizer.average).
        part: part of a mixed objective to load alone (default: all of them).

    Raises:
        LaunchError, CheckpointError: no run in the folder, or no intact checkpoint.
        ConfigError: unknown precision or part.
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
        weights=weights,
        part=part,
    )
