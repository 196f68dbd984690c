"""Mixtures for tests."""

from __future__ import annotations

from pathlib import Path

from xlpretrain.data.mixture import CorpusConfig, Mixture


def mixture_of(*folders: Path, weights: tuple[float, ...] = (), max_epochs: tuple[float | None, ...] = ()) -> Mixture:
    """Mix datasets by weight (default: 1 each), with at most `max_epochs` passes each."""
    return Mixture.open(
        [
            CorpusConfig(
                path=str(folder),
                weight=weights[i] if weights else 1.0,
                max_epochs=max_epochs[i] if max_epochs else None,
            )
            for i, folder in enumerate(folders)
        ]
    )
