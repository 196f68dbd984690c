"""Named ranges in the trace of a profile. While none is recorded, a range costs a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch.profiler import record_function

_NOTHING = nullcontext()
_recording = False
_collect: Callable[[bool], object] = bool


def record(on: bool, collect: Callable[[bool], object] = bool) -> None:
    """Begin or end to record ranges. collect: switches the profiler off and on again, for `paused`."""
    global _recording, _collect
    _recording, _collect = on, collect


def named(name: str) -> AbstractContextManager[Any]:
    """A range of this thread, for one of the `names`."""
    return record_function(name) if _recording else _NOTHING


@contextmanager
def paused() -> Iterator[None]:
    """Leave a block out of the profile, if one is recorded: an evaluation would make it too large to read."""
    global _recording
    if not _recording:
        yield
        return
    _recording = False
    _collect(False)
    try:
        yield
    finally:
        _collect(True)
        _recording = True
