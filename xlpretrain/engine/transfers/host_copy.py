"""Copies of a device's numbers for the host, which is to wait for as little of the device's work as possible."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor


class HostCopy:
    """A number of the device, whose copy to the host begins now and is waited for when it is read.

    `float(copy)` waits for the work that was given to the device before the copy was begun, not for what came after.
    On the CPU there is nothing to copy.
    """

    def __init__(self, number: Shaped[Tensor, ""]):
        self._number = number
        self._arrived: torch.cuda.Event | None = None
        if number.device.type == "cuda":
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True).copy_(number, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def __float__(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._number)
