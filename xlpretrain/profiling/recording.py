"""A profile of some steps: torch's profiler, with named ranges around the modules of interest."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from xlpretrain.file_system.atomic_files import atomic_writer, fsync
from xlpretrain.profiling import ranges

_MOST_ALLOCATIONS = 200_000


class Recording:
    """A profile that is being recorded, from `start` to `stop`.

    Ranges around modules are hooks, which exist only during the recording.
    """

    def __init__(self, modules: Iterable[tuple[nn.Module, str]], device: torch.device):
        """modules: those whose forward passes get a range, and its name. None may be part of a compiled one."""
        self._modules, self._device = list(modules), device
        self._hooks: list[Any] = []
        self._activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints lines of its own
        self._profile = profile(activities=self._activities)

    def start(self) -> None:
        """Begin to record, once the device has nothing left to do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            _record_memory(enabled="all", max_entries=_MOST_ALLOCATIONS)
        for module, name in self._modules:
            self._hooks += _range_around(module, name)
        self._profile.start()
        ranges.record(True, lambda on: self._profile.toggle_collection_dynamic(on, self._activities))

    def stop(self) -> None:
        """End the recording, once the device has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        ranges.record(False)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._profile.stop()

    def write_trace(self, path: Path, *, fence: Callable[[], None] = lambda: None) -> None:
        """Write the trace, compressed, under a temporary name first. Raises OSError, and what `fence` raises."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path, fence=fence) as temporary, tempfile.TemporaryDirectory() as scratch:
            plain = Path(scratch) / "trace.json"
            self._profile.export_chrome_trace(str(plain))
            with plain.open("rb") as read, gzip.open(temporary, "wb", compresslevel=6) as written:
                shutil.copyfileobj(read, written)
            fsync(temporary)

    def write_memory(self, path: Path, *, fence: Callable[[], None] = lambda: None) -> bool:
        """Write the GPU's allocations during the recording, for https://pytorch.org/memory_viz.

        False if there are none: on a CPU, or if torch cannot record them. Raises OSError.
        """
        dump = getattr(torch.cuda.memory, "_dump_snapshot", None)
        if self._device.type != "cuda" or dump is None:
            return False
        with atomic_writer(path, fence=fence) as temporary:
            dump(str(temporary))
            fsync(temporary)
        return True

    def forget(self) -> None:
        """Drop what was recorded and is not written. Call it after `stop`, at the latest when all is written."""
        if self._device.type == "cuda":
            _record_memory(enabled=None)


def _record_memory(**settings: Any) -> None:
    """Start or end torch's history of allocations, by the function that its documentation names, if it has it."""
    record = getattr(torch.cuda.memory, "_record_memory_history", None)
    if record is not None:
        record(**settings)


def _range_around(module: nn.Module, name: str) -> list[Any]:
    """Hooks that record a range around each forward pass of a module; also if it raises."""
    entered: list[Any] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        entered.append(record_function(name))
        entered[-1].__enter__()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        entered.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
