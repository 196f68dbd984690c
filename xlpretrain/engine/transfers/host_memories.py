"""Memories of streams in host memory, for runs whose memories take too much of the device's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from xlpretrain.engine.transfers.host_copy import HostCopy
from xlpretrain.machine.host_buffer import host_buffer


class HostMemories(Sequence[Tensor]):
    """Memories of a rank's micro-batches, [L, B, M, D] each, in host memory: page-locked if the device is a GPU.

    There are two sets of buffers, which take turns. A step fetches what it reads from the current set and keeps what it
    leaves behind in the other one, which becomes the current set if the step was finite. On a GPU, the copies run on a
    stream of their own: micro-batch n + 1 arrives while n is computed, and what n leaves behind is copied during its
    backward pass.
    """

    def __init__(self, parts: Sequence[Tensor], device: torch.device):
        """Copy the memories of all micro-batches from `parts`, wherever they are."""
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._now, self._next = (_buffers(parts, pinned=device.type == "cuda") for _ in range(2))
        self._last_norm: HostCopy | None = None
        self._arriving: dict[int, tuple[Tensor, torch.cuda.Event | None]] = {}
        self.refill(parts)

    def refill(self, parts: Sequence[Tensor]) -> None:
        """Replace the current memories by `parts` of the same shapes."""
        self._settle()
        self._wait()
        for buffer, part in zip(self._now, parts, strict=True):
            buffer.copy_(part)

    def fetch(self, number: int) -> Tensor:
        """The current memory of a micro-batch, on the device. Fetch in order: the next one's copy is started."""
        self._settle()
        memory, arrived = self._arriving.pop(number) if number in self._arriving else self._start(number)
        if number + 1 < len(self):
            self._arriving[number + 1] = self._start(number + 1)
        if arrived is not None:
            compute = torch.cuda.current_stream(self._device)
            compute.wait_event(arrived)
            memory.record_stream(compute)
        return memory

    def keep(self, number: int, memory: Tensor) -> None:
        """Copy the next memory of a micro-batch to the host, without waiting for it."""
        if self._copies is None:
            self._next[number].copy_(memory)
            return
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            self._next[number].copy_(memory, non_blocking=True)
        memory.record_stream(self._copies)

    def advance_if_finite(self, grad_norm: HostCopy) -> None:
        """Make the memories that the step has kept the current ones, unless its gradient norm is not finite.

        The norm is read when the memories are next used.
        """
        self._settle()
        self._last_norm = grad_norm

    def __len__(self) -> int:
        return len(self._now)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        """The current memory of a micro-batch, on the host, complete."""
        self._settle()
        self._wait()
        return self._now[index]

    def _settle(self) -> None:
        if self._last_norm is not None and math.isfinite(float(self._last_norm)):
            self._now, self._next = self._next, self._now
        self._last_norm = None

    def _start(self, number: int) -> tuple[Tensor, torch.cuda.Event | None]:
        if self._copies is None:
            return self._now[number].to(self._device), None
        with torch.cuda.stream(self._copies):
            return self._now[number].to(self._device, non_blocking=True), self._copies.record_event()

    def _wait(self) -> None:
        if self._copies is not None:
            self._copies.synchronize()


def _buffers(parts: Sequence[Tensor], *, pinned: bool) -> list[Tensor]:
    """Buffers with the shapes of `parts`, all in one allocation."""
    sizes = [math.prod(part.shape) * part.dtype.itemsize for part in parts]
    pieces = torch.split(host_buffer(sum(sizes), pinned=pinned), sizes)
    return [piece.view(part.dtype).view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
