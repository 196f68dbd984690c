"""Loss spikes: what counts as one, and which data it takes the blame of. Torch-free.

PaLM (arXiv:2204.02311, section 5.1): a run that spikes goes back to a checkpoint before the spike and leaves out the
data around it; the same data is harmless to another state of the weights, so nothing is wrong with either alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import Field

from xlpretrain.schema import Section


class SpikeConfig(Section):
    """Going back where the loss spikes."""

    threshold: float | None = Field(None, gt=0)
    """Nats by which a step's loss must exceed the median of those before it to be a spike (default: none ever is)."""
    window: int = Field(50, ge=2)
    """How many steps before it count; a run's first ones cannot spike."""
    skip_before: int = Field(0, ge=0)
    """Steps before the spike whose data is left out with it."""
    skip_after: int = Field(0, ge=0)
    """Steps after it."""
    max_rollbacks: int = Field(5, ge=1)
    """At the next spike after so many, the run fails."""


def is_spike(loss: float, recent: Sequence[float], config: SpikeConfig) -> bool:
    """Whether `loss` stands out from the losses of the steps before it."""
    if config.threshold is None or len(recent) < config.window:
        return False
    return loss > statistics.median(recent) + config.threshold
