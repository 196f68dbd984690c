"""The interface of a callback: code that takes part in training beside the loop, and is called at declared events.

Every rank runs the same callbacks in the same order, since all of them have the same config. A callback adds numbers
to reductions that the loop makes anyway; only `section`, which every rank enters, may call collectives of its own.

All methods are optional. An `XLPretrainError` that a method raises on one rank ends the run on all of them, with its
message, at the next step boundary. Any other exception ends it with a traceback that names the callback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.sections import CallbackConfig
from xlpretrain.data.samples import SampleSource
from xlpretrain.evaluation.held_out import EvaluatedModel, Pause
from xlpretrain.models.pretraining_model import Batch, Loss
from xlpretrain.tracking.metrics_file import Metrics

__all__ = [
    "Callback",
    "CallbackConfig",
    "CallbackContext",
    "CompletedStep",
    "MicroBatch",
    "Request",
    "RollBack",
]


@dataclass(frozen=True)
class CallbackContext:
    """The facts about a run that callbacks are built from.

    streams: those this rank works on. max_steps: the step at which the run is finished. run_folder: only rank 0 may
    write there, and only files that are the callback's own. corpora: names of the corpora of a mixture, else none.
    model: forward passes in evaluation mode, for sections; under ZeRO-3 each is a collective.
    print: a line on the console and in the log of rank 0; it does nothing on other ranks.
    """

    config: RunConfig
    rank: int
    world_size: int
    streams: range
    max_steps: int
    device: torch.device
    run_folder: Path
    corpora: Sequence[str]
    model: EvaluatedModel
    print: Callable[[str], None]

    def is_logged(self, step: int) -> bool:
        """True if a row of metrics is recorded after `step`."""
        return self.is_due(step, self.config.log.every_steps)

    def is_due(self, step: int, every_steps: int) -> bool:
        """True at multiples of `every_steps`, and at the end of the run."""
        return step == self.max_steps or step % every_steps == 0


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of this rank. streams: of its samples, in order. batch: on the CPU."""

    step: int
    number: int
    streams: range
    batch: Batch
    source: SampleSource

    def corpora(self) -> list[int]:
        """The number of each sample's corpus."""
        return [self.source.corpus(step=self.step, stream=stream) for stream in self.streams]


@dataclass(frozen=True)
class CompletedStep:
    """One update. step: the number of completed steps. sums: this rank's sum of each loss term, on the device.

    counts: predictions of each loss term, over all ranks. grad_norm: global, before clipping; not finite if the update
    was skipped.
    """

    step: int
    sums: Mapping[str, Tensor]
    counts: Mapping[str, int]
    grad_norm: float
    lr: float


@dataclass(frozen=True)
class RollBack:
    """A request to return to a checkpoint, and to go on without the data around the last step.

    skip_before, skip_after: steps before and after the last one whose data is left out with it; the checkpoint is from
    before them. reason: follows "step N: " in the message. Without a checkpoint the run goes on.
    """

    reason: str
    skip_before: int = 0
    skip_after: int = 0


Request = Literal["finish", "stop", "save"] | RollBack
"""An action that a callback asks the loop for, on all ranks alike.

finish: end the run as if `max_steps` was reached; during a section it is ignored. stop: save and exit with code 75, to
be resumed. save: write a checkpoint of this step, if there is none yet.
"""


class Callback:
    """A callback that does nothing. `step` is the number of completed steps wherever it is an argument.

    Attributes:
        num_numbers: the length of `numbers`, constant and the same on every rank.
        num_row_numbers: the length of `row_numbers`, likewise.
        section_timeout_s: seconds that may pass between two calls of `pause` in a section (None: watchdog.timeout_s).
    """

    num_numbers: int = 0
    num_row_numbers: int = 0
    section_timeout_s: float | None = None

    def before_step(self, step: int) -> None:
        """The ranks have agreed to do another step."""

    def after_forward(self, micro_batch: MicroBatch, loss: Loss) -> None:
        """A micro-batch went through the model, before its backward pass. Do not keep its graph."""

    def after_step(self, done: CompletedStep) -> None:
        """The update was made. Reading a tensor of it waits for the device."""

    def numbers(self, step: int) -> Sequence[float]:
        """This rank's numbers for the next agreement; `agreed` is called with their sums at once."""
        return ()

    def agreed(self, step: int, sums: Sequence[float]) -> Request | None:
        """Take the sums of `numbers` over all ranks (float64): before each step, and at each pause of a section.

        The result, or an `XLPretrainError`, must depend on nothing but values that are the same on every rank.
        """
        return None

    def row_numbers(self, step: int) -> Sequence[float]:
        """This rank's numbers for the row of metrics, at steps that are logged."""
        return ()

    def metrics(self, step: int, sums: Sequence[float]) -> Metrics:
        """The metrics for the row, from the sums of `row_numbers` over all ranks (float64)."""
        return {}

    def is_due(self, step: int) -> bool:
        """True if `section` follows `step`: a function of the step and of agreed numbers alone."""
        return False

    def section(self, pause: Pause) -> Metrics:
        """Do work in which every rank takes part, collectives included; returns metrics for the row of the step.

        Every rank must call `pause` equally often, with its own error if it has one. A stop is raised from there; the
        section is then entered anew by the next attempt.
        """
        return {}

    def after_evaluation(self, step: int, metrics: Metrics) -> None:
        """The held-out split was scored. metrics: `valid/loss` and the others, the same on every rank."""

    def after_row(self, step: int, row: Metrics) -> None:
        """The step is over. row: its metrics, evaluation included; empty if none were due."""

    def after_rollback(self, saved: Mapping[str, Any] | None) -> None:
        """The run returned to a checkpoint. saved: this callback's state in it; by default it is loaded."""
        if saved is not None:
            self.load_state(saved)

    def state(self) -> dict[str, Any]:
        """The state of the run, the same on every rank, for each checkpoint: what JSON can express."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume with a state. Not called where the checkpoint has none of this callback."""

    def stream_state(self) -> Shaped[Tensor, "S ..."] | None:
        """The state of each stream of this rank, for each checkpoint; on a resume streams may move between ranks."""
        return None

    def load_stream_state(self, state: Shaped[Tensor, "S ..."]) -> None:
        """Resume with the state of this rank's streams, on the CPU. Not called where the checkpoint has none."""

    def close(self) -> None:
        """Training is over on this rank, in whatever way."""
