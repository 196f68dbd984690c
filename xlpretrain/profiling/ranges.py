"""Named ranges in the trace of a profile. While none is recorded, a range costs a comparison."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.profiler import record_function

_NOTHING = nullcontext()
_recording = False


def record(on: bool) -> None:
    """Begin or end to record ranges; called by `Recording`."""
    global _recording
    _recording = on


def named(name: str) -> AbstractContextManager[Any]:
    """A range of this thread, for one of the `names`."""
    return record_function(name) if _recording else _NOTHING
