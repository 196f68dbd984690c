"""One rank's part in a run: what the training loop works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from xlpretrain import checkpoint
from xlpretrain.config import RunConfig
from xlpretrain.data.loader import Loader
from xlpretrain.data.stream import Rows
from xlpretrain.engine.engine import Engine
from xlpretrain.errors import XLPretrainError
from xlpretrain.evaluate import Evaluation, Pause
from xlpretrain.lease import Lease
from xlpretrain.metrics import Metrics, Stopwatch
from xlpretrain.objectives.objective import Batch
from xlpretrain.predictions import PredictionCounter
from xlpretrain.recorder import Recorder
from xlpretrain.run_folder import RunFolder
from xlpretrain.state import TrainState
from xlpretrain.stopping import StopRequest
from xlpretrain.watchdog import Watchdog


@dataclass
class Run:
    """One rank's part in a run, ready to go on from `state.step`.

    streams: those this rank works on. mems: one memory per micro-batch, of consecutive streams. saver: its checkpoints.
    peak_flops: of all ranks together. trouble: a mistake of the user's that this rank met, until the ranks agree on it.
    corpus_losses: this rank's sums and counts by corpus, of the last step that is logged.
    predictions: counts how much of the steps that are logged is predicted.
    damage_told: what was said of damaged blocks.
    last_losses: this rank's part of the last step's loss, until the ranks have looked whether it is a spike.
    """

    config: RunConfig
    folder: RunFolder
    lease: Lease
    watchdog: Watchdog
    engine: Engine
    loader: Loader[Batch]
    rows: Rows
    streams: range
    state: TrainState
    mems: list[Tensor]
    evaluate: Callable[[Pause], Evaluation] | None
    probe: Callable[[Pause], Metrics] | None
    stop: StopRequest
    recorder: Recorder
    peak_flops: float
    flops_per_token: float
    saver: checkpoint.Saver
    predictions: PredictionCounter
    trouble: XLPretrainError | None = None
    last_losses: float | None = None
    corpus_losses: Tensor | None = None
    damage_told: set[str] = field(default_factory=set)
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def max_steps(self) -> int:
        """The step at which the run is finished."""
        assert self.config.max_steps is not None, "the config was resolved"
        return self.config.max_steps
