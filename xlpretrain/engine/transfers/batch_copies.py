"""Copies of batches to a GPU, started by the loader's thread while the GPU computes the previous steps.

A copy from pageable memory makes the host wait for all work queued on the GPU. Here the loader's thread puts each
batch into pinned memory and starts its copy on a stream of its own, so that nothing waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xlpretrain.data.loader import Collate
from xlpretrain.data.samples import Sample
from xlpretrain.models.pretraining_model import Batch


def copied_ahead(collate: Collate[Batch], device: torch.device) -> Collate[Batch]:
    """Collate into batches whose copies to `device` are under way; on the CPU, `collate` itself."""
    return collate if device.type == "cpu" else _CopiedAhead(collate, device)


@dataclass(frozen=True, kw_only=True)
class CopiedBatch(Batch):
    """A batch in pinned memory, and its copy on a device, which is complete after the CUDA event `copied`."""

    copy: Batch
    copied: Any  # torch.cuda.Event, a class without instances in builds for CPUs

    def to(self, device: torch.device) -> Batch:
        """The copy, after telling the current stream to wait for it; the host does not wait."""
        if self.copy.inputs.tokens.device != device:
            return super().to(device)
        stream = torch.cuda.current_stream(device)
        stream.wait_event(self.copied)

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)  # the copying stream may reuse its memory only when this one is done with it
            return tensor

        return self.copy.map(keep)


class _CopiedAhead:
    """Collates, pins, and starts a copy; called by the loader's thread."""

    def __init__(self, collate: Collate[Batch], device: torch.device):
        self._collate = collate
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, samples: Sequence[Sample]) -> CopiedBatch:
        batch = self._collate(samples)
        with torch.cuda.stream(self._stream):  # also selects the device, which is a setting of each thread
            pinned = batch.map(Tensor.pin_memory)
            copy = pinned.to(self._device)
            return CopiedBatch(**vars(pinned), copy=copy, copied=self._stream.record_event())
