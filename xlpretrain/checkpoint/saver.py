"""Asynchronous saves: the training loop only waits for a copy of the state; a low-priority thread writes it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Shaped
from pydantic import Field
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.checkpoint.environment import layout
from xlpretrain.checkpoint.files import DamagedError, memory_key, stream_state_key, tensor_key
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.checkpoint.writer import (
    POLL_S,
    HostBuffer,
    Saved,
    SaveTarget,
    StaleDirectoryError,
    StateSnapshot,
    amend,
    dtype_of,
    write_checkpoint,
)
from xlpretrain.engine.base import Engine
from xlpretrain.engine.state_shards import StateShard
from xlpretrain.errors import CheckpointError
from xlpretrain.schema import Section

RETRY_S = 60.0
"""Seconds after a failed save until the next try, unless one is due earlier."""


class CheckpointConfig(Section):
    """Schedule of checkpoints, and which to keep. There is always one at the end."""

    every_steps: Annotated[int, Field(ge=1)] | None = 100
    """Steps between checkpoints (null: only by time)."""
    every_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds between the starts of two saves (default: only by steps)."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Number of newest checkpoints to keep, in addition to the one that the run last resumed from."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Also keep checkpoints of steps that are a multiple of this (default: none)."""
    keep_best: bool = False
    """Save after each new best evaluation (eval.best), keep that checkpoint, and load it by default."""


class SaveVotes(NamedTuple):
    """One rank's report on its saves, reduced at every step; after the sum, each field counts ranks.

    writing: still writing a save. failed: failed to write their part. due: a save is due.
    """

    writing: float
    failed: float
    due: float


class Saver:
    """One rank's side of saving. At most one save is in flight; all ranks start it after the same step.

    At each step boundary every rank sums its `votes` over ranks, passes the sums to `apply_votes`, and calls `start`
    if a save is due and none is being written. `wait` does the same until no rank is writing.

    Attributes:
        saved_at: last step known to be on disk, equal on every rank.
    """

    def __init__(
        self,
        checkpoints: Path,
        config: CheckpointConfig,
        *,
        step: int = 0,
        saved_at: int | None = None,
        owner: int = 0,
        fence: Callable[[], None] = lambda: None,
        before_commit: Callable[[], None] = lambda: None,
    ):
        """Create a saver for a run at `step`, resumed from the checkpoint of `saved_at` (None: not resumed).

        owner, fence, before_commit: see `SaveTarget`. If the fence raises anything but an OSError or a
        `CheckpointError`, `apply_votes` raises it on every rank, which ends the run.
        """
        self.saved_at = saved_at
        self._config = config
        self._place = SaveTarget(
            checkpoints=checkpoints,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            owner=owner,
            fence=fence,
            before_commit=before_commit,
            keep=config.keep,
            keep_every=config.keep_every,
            keep_best=config.keep_best,
            verified=saved_at,
        )
        self._host = HostBuffer()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._gave_up = threading.Event()
        self._attempts = 0
        self._outdated: dict[str, Any] | None = None  # state that the last save's manifest should have
        self._begun_at = step
        self._next_s = time.monotonic() + (config.every_s or float("inf"))

    def reserve(
        self,
        engine: Engine,
        *,
        memory: Mapping[range, Sequence[Shaped[Tensor, "L _ M D"]]],
        stream_states: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Allocate the copy buffers now, so that the first save is as fast as later ones."""
        self._host.copy(_tensors(engine.state_ranges(), memory, stream_states))

    def votes(self, step: int) -> SaveVotes:
        """This rank's report after `step`."""
        writing = (
            self._thread is not None and self._thread.is_alive()
        )  # before the failure, which is final once it ends
        every = self._config.every_steps
        due = every is not None and step // every > self._begun_at // every
        return SaveVotes(writing, self._failure is not None, due or time.monotonic() >= self._next_s)

    def apply_votes(self, votes: SaveVotes) -> str | None:
        """Act on the ranks' summed votes: finish, fail or keep waiting. Every rank must call it with the same votes.

        Returns a message on a failed save, once. Errors that end the run are raised on every rank.
        """
        if votes.failed:
            self._gave_up.set()  # rank 0 may be waiting for the file of a failed rank
        if votes.writing or self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        if not votes.failed:
            self.saved_at = self._begun_at
            return self._amend()
        failures = {rank: f for rank, f in enumerate(distributed.gather_objects(self._failure)) if f is not None}
        self._failure = None
        self._next_s = min(self._next_s, time.monotonic() + RETRY_S)
        for failure in failures.values():
            if not isinstance(failure, OSError | CheckpointError):
                raise failure
        # A failure makes other ranks fail with StaleDirectoryError: report the cause.
        rank, failure = min(failures.items(), key=lambda item: (isinstance(item[1], StaleDirectoryError), item[0]))
        checkpoints = self._place.checkpoints
        return f"the checkpoint of step {self._begun_at} could not be written to {checkpoints} (rank {rank}): {failure}"

    def start(
        self,
        state: TrainState,
        engine: Engine,
        *,
        memory: Mapping[range, Sequence[Shaped[Tensor, "L _ M D"]]],
        stream_states: Mapping[str, Tensor] = MappingProxyType({}),
        behind: bool = True,
    ) -> None:
        """Copy the state, then write it on a thread. Every rank must call it after the same step, with none writing.

        Args:
            memory: by consecutive streams of this rank, in one or more parts; M may differ between ranges.
            stream_states: state of all these streams by callback, in the same order; the same names on every rank.
            behind: training continues meanwhile, so the thread runs at the lowest priority.
        """
        assert self._thread is None, "one save at a time"
        self._attempts += 1
        self._outdated = None
        self._begun_at = state.step
        self._next_s = time.monotonic() + (self._config.every_s or float("inf"))
        self._gave_up.clear()
        ranges = engine.state_ranges()
        copied = StateSnapshot(
            step=state.step,
            attempt=self._attempts,
            content=self._host.copy(_tensors(ranges, memory, stream_states)),
            ranges=[(r.kind, r.name, r.start, r.stop) for r in ranges],
            streams=[(streams.start, streams.stop) for streams in memory if streams],
            state=asdict(state),
            layout=layout(engine),
            updates=engine.num_updates,
            shapes={name: tuple(shape) for name, shape in engine.shapes.items()},
            kinds=engine.kinds,
            stream_states=sorted(stream_states),
        )
        self._thread = threading.Thread(target=self._write, args=(copied, behind), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> str | None:
        """Wait until no rank is writing. Every rank must call it. Returns and raises like `apply_votes`."""
        while True:
            votes = SaveVotes(*distributed.all_reduce_sum(self.votes(self._begun_at)))
            failure = self.apply_votes(votes)
            if not votes.writing:
                return failure or self._amend()
            if self._thread is not None:
                self._thread.join(POLL_S)

    def amend(self, state: TrainState) -> str | None:
        """Update the state in the checkpoint of the current step, if there is one, once it is written.

        Every rank must call it. Returns and raises like `apply_votes`; a checkpoint that cannot be updated stays
        intact, and `wait` tries again.
        """
        if self._begun_at != state.step:
            return None
        self._outdated = asdict(state)
        return self._amend()

    def _amend(self) -> str | None:
        state, step = self._outdated, self._begun_at
        if state is None or self._thread is not None or self.saved_at != step:
            return None

        def change() -> str | None:
            try:
                amend(self._place, step, state)
            except (OSError, DamagedError) as error:
                return f"the evaluation of step {step} could not be recorded in {self._place.checkpoints}: {error}"
            return None

        failure = distributed.run_on_rank_0(change)
        if failure is None:
            self._outdated = None
        return failure

    def reset_to(self, step: int) -> None:
        """Continue from the checkpoint of an earlier `step`. Every rank must call it, with none writing."""
        assert self._thread is None, "a save of a later step is in flight"
        self.saved_at = self._begun_at = step
        self._outdated = None
        self._place = replace(self._place, verified=step)

    def close(self) -> None:
        """Stop saving. Finishes this rank's file, but does not wait for other ranks."""
        self._gave_up.set()
        if self._thread is not None:
            self._thread.join()

    def _write(self, copied: StateSnapshot, behind: bool) -> None:
        if behind and hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # on Linux: only this thread
        try:
            write_checkpoint(self._place, copied, self._gave_up)
        except Exception as error:
            self._failure = error


def _tensors(
    ranges: Sequence[StateShard], memory: Mapping[range, Sequence[Tensor]], stream_states: Mapping[str, Tensor]
) -> dict[str, Saved]:
    """Tensors that this rank saves, by key; those with larger elements first, so that all are aligned."""
    tensors: dict[str, Saved] = {tensor_key(r.kind, r.name, r.start): r.tensor for r in ranges}
    sizes = [len(streams) for streams in memory]
    parts_of_states = {name: torch.split(state, sizes) for name, state in stream_states.items()}
    for i, (streams, parts) in enumerate(memory.items()):
        if streams:
            tensors[memory_key(streams.start)] = parts
            tensors |= {stream_state_key(name, streams.start): of[i] for name, of in parts_of_states.items()}
    return dict(sorted(tensors.items(), key=lambda item: -dtype_of(item[1]).itemsize))
