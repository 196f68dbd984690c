"""One rank's view of a run: the state and services that the training loop works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from xlpretrain.checkpoint.saver import Saver
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.loader import Loader
from xlpretrain.data.samples import TrainSamples
from xlpretrain.data.skip_windows import shifted_step
from xlpretrain.distributed import join_ranges
from xlpretrain.engine.base import Engine
from xlpretrain.engine.transfers.place_memory import memory_by_range
from xlpretrain.errors import XLPretrainError
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.run_dir.lease import Lease
from xlpretrain.run_dir.stop import StopRequest
from xlpretrain.run_dir.watchdog import Watchdog
from xlpretrain.train.dispatch import Callbacks
from xlpretrain.train.recorder import Recorder
from xlpretrain.train.throughput import StepTimer


@dataclass
class Run:
    """One rank's view of a run, ready to continue from `state.step`.

    stream_ranges: the streams of this rank; each micro-batch is a part of one of the ranges. memory: one tensor per
    micro-batch, for its streams. saver: writes the
    checkpoints. peak_flops: total over all ranks. pending_error: a user error raised on this rank, held until the ranks
    agree on it.
    """

    config: RunConfig
    folder: RunDir
    lease: Lease
    watchdog: Watchdog
    engine: Engine
    loader: Loader[Batch]
    samples: TrainSamples
    stream_ranges: Sequence[range]
    state: TrainState
    memory: Sequence[Tensor]
    stop: StopRequest
    recorder: Recorder
    peak_flops: float
    flops_per_token: float
    saver: Saver
    callbacks: Callbacks
    pending_error: XLPretrainError | None = None
    step_timer: StepTimer = field(default_factory=StepTimer)

    @property
    def streams(self) -> Sequence[int]:
        """The streams of this rank: a range, or a list if there are several."""
        return join_ranges(self.stream_ranges)

    def memory_of_streams(self) -> dict[range, list[Tensor]]:
        """The memory of this rank's streams by range, each in the parts that its micro-batches have."""
        return memory_by_range(self.memory, self.stream_ranges, self.loader.micro_batches)

    @property
    def data_step(self) -> int:
        """The data step to read next; steps skipped after a loss spike count as read."""
        return shifted_step(self.state.step, self.state.skipped_windows)[0]

    @property
    def max_steps(self) -> int:
        """The step at which the run is finished."""
        assert self.config.max_steps is not None, "the config was resolved"
        return self.config.max_steps
