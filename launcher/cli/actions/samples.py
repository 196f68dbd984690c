"""Show documents of a dataset, or the samples that a model is trained on: `xlpretrain data show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xlpretrain.evaluation.sample_viewer import show_document, show_sample


def show(place: Path, *, document: int, step: int | None, stream: int, overrides: Sequence[str]) -> None:
    """Print a document of a dataset or, given a step, a stream's sample at that step. Raises `XLPretrainError`."""
    if step is None:
        show_document(place, document)
    else:
        show_sample(place, step=step, stream=stream, overrides=list(overrides))
