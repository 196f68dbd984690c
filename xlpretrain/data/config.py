"""A part of the section `data` of a run's configuration; `paths` has the rest. Torch-free."""

from __future__ import annotations

from pydantic import PositiveFloat

from xlpretrain.schema import Section


class CorpusConfig(Section):
    """One of the corpora that a run trains on."""

    path: str
    """Folder or URL of the training split (it holds an index.json)."""
    weight: PositiveFloat = 1.0
    """Its share of the rows is this, divided by the sum of all weights."""
    max_epochs: PositiveFloat | None = None
    """After so many passes it is not read any more, and the others share its part (default: no end)."""
