"""A profile of some steps: each rank that makes one writes its trace into the run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from torch import nn

from xlpretrain.engine.compiled import uncompiled_modules
from xlpretrain.errors import LeaseLostError
from xlpretrain.models.attention import Attention
from xlpretrain.models.pretraining_model import Head
from xlpretrain.profiling.names import ATTENTION, LOSS, PROJECTION
from xlpretrain.profiling.recording import Recording
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.run_dir.lease import leave
from xlpretrain.train.callbacks.base import Callback, CallbackContext, CompletedStep


class Profile(Callback):
    """Records the steps of `profile`, from the first one's data to the last one's update.

    A recording that a rollback or the end of the attempt interrupts is dropped. Steps that a resumed run has already
    done are not profiled.
    """

    def __init__(self, context: CallbackContext, model: nn.Module, *, fence: Callable[[], None]):
        """fence: raises `LeaseLostError` if another attempt has taken over the run."""
        config = context.config.profile
        assert config.first_step is not None
        self._context, self._model, self._fence = context, model, fence
        self._before, self._last = (
            config.first_step - 1,
            min(config.first_step + config.num_steps - 1, context.max_steps),
        )
        self._is_wanted = context.rank in config.ranks
        self._begun_at = 0
        if missing := [rank for rank in config.ranks if rank >= context.world_size]:
            context.print(f"profile.ranks: the run has {context.world_size} ranks, from 0; no profile of {missing}")
        if config.first_step > context.max_steps:
            context.print(f"profile.first_step is {config.first_step}, but the run ends at step {context.max_steps}")
        self._recording: Recording | None = None

    def before_fetch(self, step: int) -> None:
        """Begin a recording, if the next step is to be profiled."""
        if self._is_wanted and self._recording is None and self._before <= step < self._last:
            self._begun_at = step + 1
            self._recording = Recording(module_ranges(self._model), self._context.device)
            self._recording.start()

    def after_step(self, done: CompletedStep) -> None:
        """Write the recording after the last step. If that fails, training goes on."""
        if self._recording is None or done.step < self._last:
            return
        recording, self._recording = self._recording, None
        recording.stop()
        trace, memory = RunDir(self._context.run_folder).profile_files(self._begun_at, self._context.rank)
        try:
            recording.write_trace(trace, fence=self._fence)
            recording.write_memory(memory, fence=self._fence)
        except LeaseLostError as error:
            leave(error)
        except OSError as error:
            self._print(f"{trace}: the profile cannot be written: {error.strerror or error}; training continues")
            return
        finally:
            recording.forget()
        steps = f"step {done.step}" if done.step == self._begun_at else f"steps {self._begun_at} to {done.step}"
        self._print(f"profile of {steps}: {trace}; `xlpretrain profile {self._context.run_folder}` shows it")

    def after_rollback(self, saved: object) -> None:
        """Drop the recording: the next steps repeat others."""
        self.close()

    def close(self) -> None:
        """Drop the recording, if one is under way."""
        if self._recording is not None:
            recording, self._recording = self._recording, None
            recording.stop()
            recording.forget()

    def _print(self, message: str) -> None:
        """On rank 0's console, or in the log of another rank."""
        if self._context.rank == 0:
            self._context.print(message)
        else:
            print(f"rank {self._context.rank}: {message}", file=sys.stderr, flush=True)


def module_ranges(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The modules that have a range of their own in a profile, and its name."""
    for module in uncompiled_modules(model):
        if isinstance(module, Attention):
            yield module, ATTENTION
            yield from ((child, PROJECTION) for child in module.children() if isinstance(child, nn.Linear))
        elif isinstance(module, Head):
            yield module, LOSS
