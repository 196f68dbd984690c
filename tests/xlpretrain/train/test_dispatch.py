"""Callbacks are called in order, have their part of each reduction, and are named by their errors."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from xlpretrain.errors import TrainingError
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, Request
from xlpretrain.train.dispatch import Callbacks


class Noting(Callback):
    """Notes its calls, adds numbers, and raises where it is told to."""

    def __init__(
        self, name: str, calls: list[str], *, numbers: Sequence[float] = (), errors: Mapping[str, Exception] = {}
    ):
        self.name, self.calls, self.given, self.errors = name, calls, numbers, errors
        self.num_numbers = self.num_row_numbers = len(numbers)
        self.loaded: dict[str, Any] = {}
        self.streams: Tensor | None = None

    def _note(self, event: str) -> None:
        self.calls.append(f"{self.name}.{event}")
        if event in self.errors:
            raise self.errors[event]

    def before_step(self, step: int) -> None:
        self._note("before_step")

    def numbers(self, step: int) -> Sequence[float]:
        self._note("numbers")
        return self.given

    def agreed(self, step: int, sums: Sequence[float]) -> Request | None:
        self._note(f"agreed {[*sums]}")
        return "save" if sums else None

    def row_numbers(self, step: int) -> Sequence[float]:
        return self.given

    def metrics(self, step: int, sums: Sequence[float]) -> Metrics:
        return {f"{self.name}/sum": sum(sums)}

    def is_due(self, step: int) -> bool:
        return step % 2 == 0

    def state(self) -> dict[str, Any]:
        return self.loaded

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._note("load_state")
        self.loaded = dict(state)

    def stream_state(self) -> Tensor | None:
        return self.streams

    def load_stream_state(self, state: Tensor) -> None:
        self.streams = state

    def close(self) -> None:
        self._note("close")


def two(*, errors: Mapping[str, Exception] = {}) -> tuple[Callbacks, list[str]]:
    calls: list[str] = []
    first = Noting("first", calls, numbers=(1.0, 2.0), errors=errors)
    return Callbacks(
        {"first": first, "second": Noting("second", calls), "third": Noting("third", calls, numbers=(5.0,))}
    ), calls


def test_they_are_called_in_order_and_closed_in_the_reverse_one():
    callbacks, calls = two()
    callbacks.before_step(0)
    callbacks.close()
    names = ["first", "second", "third"]
    assert calls == [f"{n}.before_step" for n in names] + [f"{n}.close" for n in reversed(names)]


def test_each_has_the_sums_of_its_own_numbers():
    callbacks, calls = two()
    assert callbacks.numbers(0) == callbacks.row_numbers(0) == [1.0, 2.0, 5.0]
    calls.clear()
    assert callbacks.agreed(0, [10.0, 20.0, 50.0]) == ["save", "save"]
    assert calls == ["first.agreed [10.0, 20.0]", "second.agreed []", "third.agreed [50.0]"]
    assert callbacks.metrics(0, [10.0, 20.0, 50.0]) == {"first/sum": 30.0, "second/sum": 0, "third/sum": 50.0}


@pytest.mark.parametrize("event", ["before_step", "numbers"])
def test_an_error_of_the_user_waits_for_the_ranks_to_agree_and_the_others_are_called(event: str):
    error = TrainingError("no such webhook")
    callbacks, calls = two(errors={event: error})
    result = getattr(callbacks, event)(0)
    assert callbacks.pending_error is error
    assert calls == [f"{name}.{event}" for name in ("first", "second", "third")]
    if event == "numbers":
        assert result == [0.0, 0.0, 5.0], "the reduction has its length on every rank"


def test_any_other_error_names_the_callback_in_its_traceback():
    callbacks, _ = two(errors={"before_step": ZeroDivisionError("division by zero")})
    with pytest.raises(ZeroDivisionError) as caught:
        callbacks.before_step(0)
    text = "".join(traceback.format_exception(caught.value))
    assert text.rstrip().endswith("in the callback 'first', in its method before_step")


def test_numbers_of_another_length_than_declared_are_a_mistake_of_the_callback():
    callbacks, _ = two()
    callbacks.by_name["second"].num_numbers = 3
    with pytest.raises(ValueError, match="0 numbers, but it declares 3") as caught:
        callbacks.numbers(0)
    assert "'second'" in caught.value.__notes__[0]


def test_states_go_to_their_callbacks_and_those_of_none_are_named():
    callbacks, calls = two()
    streams = torch.arange(6).view(2, 3)
    saved = {"first": {"seen": 3}, "gone": {"seen": 4}}
    assert callbacks.load(saved, {"third": streams, "away": streams}) == ["away", "gone"]
    assert calls == ["first.load_state"], "one that the checkpoint does not know begins fresh"
    assert callbacks.state() == {"first": {"seen": 3}}
    assert callbacks.stream_states(range(4, 6)).keys() == {"third"}
    with pytest.raises(ValueError, match="this rank has 3 streams"):
        callbacks.stream_states(range(3))


def test_a_state_that_json_cannot_express_is_refused_with_the_name_of_its_callback():
    callbacks, _ = two()
    callbacks.load({"second": {"seen": {1, 2}}}, {})
    with pytest.raises(TypeError) as caught:
        callbacks.state()
    assert "'second'" in caught.value.__notes__[0]


def test_a_rollback_loads_the_state_of_the_checkpoint():
    callbacks, _ = two()
    callbacks.load({"first": {"seen": 3}, "second": {"seen": 3}}, {})
    callbacks.after_rollback({"first": {"seen": 1}}, {})
    assert callbacks.state() == {"first": {"seen": 1}, "second": {"seen": 3}}


def test_sections_are_due_by_the_step():
    callbacks, _ = two()
    assert [name for name, _ in callbacks.due_sections(2)] == ["first", "second", "third"]
    assert callbacks.due_sections(3) == []
