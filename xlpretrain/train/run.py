"""One rank's view of a run: the state and services that the training loop works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from xlpretrain import distributed
from xlpretrain.checkpoint.saver import Saver
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages
from xlpretrain.data.loader import Collate, Loader
from xlpretrain.data.samples import TrainSamples
from xlpretrain.data.skip_windows import shifted_step
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
from xlpretrain.train.stages.moves import Division, divide
from xlpretrain.train.throughput import StepTimer


@dataclass
class Run:
    """One rank's view of a run, ready to continue from `state.step`.

    config: of the current stage. stages, stage: all of them, and the number of the current one. stage_flops: FLOPs per
    new token of each stage. resting: memory of streams that the stage does not read, on the CPU. collators: makes the
    collator of a stage. context_streams: the list in the callbacks' context; None if a range never changes.
    stream_ranges: the streams of this rank; each micro-batch is a part of one of the ranges. memory: one tensor per
    micro-batch, for its streams. saver: writes the checkpoints. peak_flops: total over all ranks. pending_error: a user
    error raised on this rank, held until the ranks agree on it.
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
    stages: RunStages
    stage_flops: Sequence[float]
    collators: Callable[[RunConfig], Collate[Batch]]
    context_streams: list[int] | None = None
    stage: int = 0
    resting: dict[range, Tensor] = field(default_factory=dict)
    pending_error: XLPretrainError | None = None
    step_timer: StepTimer = field(default_factory=StepTimer)

    @property
    def streams(self) -> Sequence[int]:
        """The streams of this rank: a range, or a list if there are several."""
        return distributed.join_ranges(self.stream_ranges)

    @property
    def even_division(self) -> Division:
        """The streams of each rank if a step read them all, as checkpoints of a run with stages are read."""
        num_streams, objective = self.stages.num_streams, self.config.objective
        sizes = [len(group.streams) for group in objective.stream_groups(num_streams, self.config.model.mem_len)]
        return divide(sizes, num_streams, distributed.world_size())

    def memory_of_streams(self) -> dict[range, list[Tensor]]:
        """The memory of this rank's streams by range, each in the parts that its micro-batches have."""
        found = memory_by_range(self.memory, self.stream_ranges, self.loader.micro_batches)
        return found | {streams: [memory] for streams, memory in self.resting.items() if streams}

    @property
    def data_step(self) -> int:
        """The data step to read next; steps skipped after a loss spike count as read."""
        return shifted_step(self.state.step, self.state.skipped_windows)[0]

    @property
    def max_steps(self) -> int:
        """The step at which the run is finished."""
        assert self.config.max_steps is not None, "the config was resolved"
        return self.config.max_steps
