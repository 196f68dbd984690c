"""The callback interface: code that the training loop calls at defined events.

Every rank has the same config and so runs the same callbacks in the same order. A callback adds numbers to reductions
that the loop makes anyway; only `section`, which every rank enters, may call collectives itself.

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
from xlpretrain.engine.transfers.host_copy import HostCopy
from xlpretrain.evaluation.held_out import EvaluatedModel, Pause
from xlpretrain.models.pretraining_model import Batch, Loss
from xlpretrain.run_dir.alerts import Event
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

    streams: the streams of this rank: a range, or a list where a rank has several ranges; in a run with stages a list
    that changes at a boundary, before `load_stream_state` is called. max_steps: the step at which the run is finished.
    run_folder: only rank 0 may write there, and only the callback's own files. corpora: names of the corpora of a
    mixture, else empty.
    model: forward passes in evaluation mode, for sections; under ZeRO-3 each is a collective.
    print: prints a line on the console and in the log of rank 0; does nothing on other ranks.
    alert: sends an alert from rank 0 (event, message, step), if the config lists its event; returns at once.
    """

    config: RunConfig
    rank: int
    world_size: int
    streams: Sequence[int]
    max_steps: int
    device: torch.device
    run_folder: Path
    corpora: Sequence[str]
    model: EvaluatedModel
    print: Callable[[str], None]
    alert: Callable[[Event, str, int], None] = lambda event, message, step: None

    def is_logged(self, step: int) -> bool:
        """True if a row of metrics is recorded after `step`."""
        return self.is_due(step, self.config.log.every_steps)

    def is_due(self, step: int, every_steps: int) -> bool:
        """True at multiples of `every_steps` and at the end of the run."""
        return step == self.max_steps or step % every_steps == 0


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of this rank. streams: the stream of each sample, in order. batch: on the CPU."""

    step: int
    number: int
    streams: range
    batch: Batch
    source: SampleSource

    def corpora(self) -> list[int]:
        """The corpus index of each sample."""
        return [self.source.corpus(step=self.step, stream=stream) for stream in self.streams]


@dataclass(frozen=True)
class CompletedStep:
    """One update. step: the number of completed steps. sums: this rank's sum of each loss term, on the device.

    counts: number of predictions of each loss term, over all ranks. norm: the gradient norm as it comes from the
    device. host_sums: `sums` as they come from the device; reading one waits for the step's forward passes only.
    """

    step: int
    sums: Mapping[str, Tensor]
    counts: Mapping[str, int | float]
    norm: HostCopy
    lr: float
    host_sums: Mapping[str, HostCopy]

    @property
    def grad_norm(self) -> float:
        """Global gradient norm before clipping; not finite if the update was skipped. Reading it waits for the step."""
        return float(self.norm)


@dataclass(frozen=True)
class RollBack:
    """A request to return to a checkpoint and skip the data around the last step.

    skip_before, skip_after: number of steps before and after the last one whose data is skipped too; the checkpoint is
    from before them. reason: printed after "step N: ". If there is no checkpoint, the run continues.
    """

    reason: str
    skip_before: int = 0
    skip_after: int = 0


Request = Literal["finish", "stop", "save"] | RollBack
"""An action that a callback requests from the loop, the same on all ranks.

finish: end the run as if `max_steps` were reached; ignored during a section. stop: save and exit with code 75, to be
resumed. save: write a checkpoint of this step, if there is none yet.
"""


class Callback:
    """Base class of callbacks; every method does nothing. The argument `step` is always the number of completed steps.

    Attributes:
        num_numbers: the length of `numbers`, constant and the same on every rank.
        num_row_numbers: the length of `row_numbers`, likewise.
        section_timeout_s: longest time between two calls of `pause` in a section (None: watchdog.timeout_s).
    """

    num_numbers: int = 0
    num_row_numbers: int = 0
    section_timeout_s: float | None = None

    def before_fetch(self, step: int) -> None:
        """Called before this rank waits for the data of another step, on which the ranks have yet to agree."""

    def before_step(self, step: int) -> None:
        """Called once the ranks have agreed to do another step."""

    def after_forward(self, micro_batch: MicroBatch, loss: Loss) -> None:
        """Called after the forward pass of a micro-batch, before its backward pass. Do not keep the autograd graph."""

    def after_step(self, done: CompletedStep) -> None:
        """Called after the update. Reading the value of a tensor synchronizes with the device."""

    def numbers(self, step: int) -> Sequence[float]:
        """This rank's numbers for the next agreement; `agreed` is called with their sums right after."""
        return ()

    def agreed(self, step: int, sums: Sequence[float]) -> Request | None:
        """Receive the sums of `numbers` over all ranks (float64), before each step and at each pause of a section.

        The result, or a raised `XLPretrainError`, must depend only on values that are the same on every rank.
        """
        return None

    def row_numbers(self, step: int) -> Sequence[float]:
        """This rank's numbers for the metrics row, at logged steps."""
        return ()

    def metrics(self, step: int, sums: Sequence[float]) -> Metrics:
        """The metrics for the row, computed from the sums of `row_numbers` over all ranks (float64)."""
        return {}

    def is_due(self, step: int) -> bool:
        """True if `section` runs after `step`; must depend only on the step and on agreed numbers."""
        return False

    def section(self, pause: Pause) -> Metrics:
        """Do work that involves every rank and may use collectives; returns metrics for the row of the step.

        Every rank must call `pause` equally often, passing its error if it has one. `pause` raises on a stop; the next
        attempt then runs the section from its beginning.
        """
        return {}

    def after_evaluation(self, step: int, metrics: Metrics) -> None:
        """Called after an evaluation. metrics: `valid/loss` and the others, the same on every rank."""

    def after_row(self, step: int, row: Metrics) -> None:
        """Called at the end of a step. row: its metrics, evaluation included; empty if none were due."""

    def after_rollback(self, saved: Mapping[str, Any] | None) -> None:
        """Called after a rollback. saved: this callback's state in the checkpoint; loaded by default."""
        if saved is not None:
            self.load_state(saved)

    def state(self) -> dict[str, Any]:
        """The JSON-serializable state to save in each checkpoint, the same on every rank."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state. Not called if the checkpoint has none for this callback."""

    def stream_state(self) -> Shaped[Tensor, "S ..."] | None:
        """The state of each of this rank's streams, saved in each checkpoint; on resume, streams may change ranks."""
        return None

    def load_stream_state(self, state: Shaped[Tensor, "S ..."]) -> None:
        """Restore the state of this rank's streams, a CPU tensor. Not called if the checkpoint has none."""

    def close(self) -> None:
        """Called when training ends on this rank, for whatever reason."""
