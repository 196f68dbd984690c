"""Dispatch to a run's callbacks: in order, each with its slice of every reduction, errors tagged with its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from xlpretrain.errors import XLPretrainError
from xlpretrain.models.pretraining_model import Loss
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CompletedStep, MicroBatch, Request


class Callbacks:
    """The callbacks of a run by name, in call order.

    Attributes:
        pending_error: the first `XLPretrainError` that a callback raised on this rank, held until the ranks agree on
            it.
    """

    def __init__(self, by_name: Mapping[str, Callback]):
        self.by_name = dict(by_name)
        self.pending_error: XLPretrainError | None = None

    def before_fetch(self, step: int) -> None:
        """Call `Callback.before_fetch` on each; see `Callback` for this and the other events."""
        self._each("before_fetch", lambda callback: callback.before_fetch(step))

    def before_step(self, step: int) -> None:
        """Call `before_step` on each, once the ranks have agreed on another step."""
        self._each("before_step", lambda callback: callback.before_step(step))

    def after_forward(self, micro_batch: MicroBatch, loss: Loss) -> None:
        """Call `after_forward` on each, once a micro-batch went through the model."""
        self._each("after_forward", lambda callback: callback.after_forward(micro_batch, loss))

    def after_step(self, done: CompletedStep) -> None:
        """Call `after_step` on each, after the update."""
        self._each("after_step", lambda callback: callback.after_step(done))

    def after_evaluation(self, step: int, metrics: Metrics) -> None:
        """Call `after_evaluation` on each, after the held-out split was scored."""
        self._each("after_evaluation", lambda callback: callback.after_evaluation(step, metrics))

    def after_row(self, step: int, row: Metrics) -> None:
        """Call `after_row` on each, at the end of the step."""
        self._each("after_row", lambda callback: callback.after_row(step, row))

    def numbers(self, step: int) -> list[float]:
        """This rank's numbers for the next agreement, all callbacks concatenated."""
        return self._gather("numbers", lambda c: c.numbers(step), lambda c: c.num_numbers)

    def agreed(self, step: int, sums: Sequence[float]) -> list[Request]:
        """Pass each callback its sums. Returns their requests; raises their errors, on every rank."""
        requests = []
        for name, callback, own in self._split(sums, lambda c: c.num_numbers):
            with _named(name, "agreed"):
                requests.append(callback.agreed(step, own))
        return [request for request in requests if request is not None]

    def row_numbers(self, step: int) -> list[float]:
        """This rank's numbers for the row of metrics, all callbacks concatenated."""
        return self._gather("row_numbers", lambda c: c.row_numbers(step), lambda c: c.num_row_numbers)

    def metrics(self, step: int, sums: Sequence[float]) -> Metrics:
        """The metrics of all callbacks, each computed from its sums."""
        metrics: Metrics = {}
        for name, callback, own in self._split(sums, lambda c: c.num_row_numbers):
            with self._deferred(name, "metrics"):
                metrics |= callback.metrics(step, own)
        return metrics

    def due_sections(self, step: int) -> list[tuple[str, Callback]]:
        """The callbacks, by name, that have a section due after this step."""
        found = []
        for name, callback in self.by_name.items():
            with _named(name, "is_due"):
                if callback.is_due(step):
                    found.append((name, callback))
        return found

    def state(self) -> dict[str, dict[str, Any]]:
        """The state of each callback that has one, copied by a round trip through JSON."""
        states = {}
        for name, callback in self.by_name.items():
            with _named(name, "state"):
                if state := callback.state():
                    states[name] = json.loads(json.dumps(state))
        return states

    def stream_states(self, streams: Sequence[int]) -> dict[str, Tensor]:
        """The per-stream state of each callback that has one, for this rank's streams."""
        states = {}
        for name, callback in self.by_name.items():
            with _named(name, "stream_state"):
                if (state := callback.stream_state()) is not None:
                    if state.shape[:1] != (len(streams),):
                        raise ValueError(f"shape {tuple(state.shape)}, but this rank has {len(streams)} streams")
                    states[name] = state.contiguous()
        return states

    def load(self, states: Mapping[str, Any], stream_states: Mapping[str, Tensor]) -> list[str]:
        """Restore states from a checkpoint. Returns the names of saved states without a callback in this run."""
        for name, callback in self.by_name.items():
            if name in states:
                with _named(name, "load_state"):
                    callback.load_state(states[name])
        self.load_streams(stream_states)
        return sorted((states.keys() | stream_states.keys()) - self.by_name.keys())

    def after_rollback(self, states: Mapping[str, Any], stream_states: Mapping[str, Tensor]) -> None:
        """Call `after_rollback` on each, once the run has returned to a checkpoint."""
        for name, callback in self.by_name.items():
            with _named(name, "after_rollback"):
                callback.after_rollback(states.get(name))
        self.load_streams(stream_states)

    def close(self) -> None:
        """Close all callbacks, in reverse order."""
        self._each("close", lambda callback: callback.close(), reverse=True)

    def load_streams(self, stream_states: Mapping[str, Tensor]) -> None:
        """Restore the states of this rank's streams, or of those that it has from now on."""
        for name, callback in self.by_name.items():
            if name in stream_states:
                with _named(name, "load_stream_state"):
                    callback.load_stream_state(stream_states[name])

    def _each(self, event: str, call: Callable[[Callback], None], *, reverse: bool = False) -> None:
        having = [item for item in self.by_name.items() if _overrides(item[1], event)]
        for name, callback in reversed(having) if reverse else having:
            with self._deferred(name, event):
                call(callback)

    def _gather(
        self, event: str, call: Callable[[Callback], Sequence[float]], length: Callable[[Callback], int]
    ) -> list[float]:
        numbers: list[float] = []
        for name, callback in self.by_name.items():
            own: Sequence[float] = [0.0] * length(callback)  # also after an error, to keep the reduction's length
            if not _overrides(callback, event):
                numbers += own
                continue
            with self._deferred(name, event):
                own = call(callback)
                if len(own) != length(callback):
                    raise ValueError(f"{len(own)} numbers, but it declares {length(callback)}")
            numbers += own
        return numbers

    def _split(
        self, sums: Sequence[float], length: Callable[[Callback], int]
    ) -> Iterator[tuple[str, Callback, Sequence[float]]]:
        start = 0
        for name, callback in self.by_name.items():
            stop = start + length(callback)
            yield name, callback, sums[start:stop]
            start = stop

    @contextmanager
    def _deferred(self, name: str, event: str) -> Iterator[None]:
        """Hold an `XLPretrainError` until the ranks agree on it: one rank must not leave alone."""
        try:
            with _named(name, event):
                yield
        except XLPretrainError as error:
            self.pending_error = self.pending_error or error


def _overrides(callback: Callback, event: str) -> bool:
    """True if a callback overrides the method of an event; others are not called, to save time."""
    return getattr(type(callback), event) is not getattr(Callback, event)


@contextmanager
def _named(name: str, event: str) -> Iterator[None]:
    """Add the callback's name to the traceback of an exception."""
    try:
        yield
    except XLPretrainError:
        raise
    except Exception as error:
        error.add_note(f"in the callback {name!r}, in its method {event}")
        raise
