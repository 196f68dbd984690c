"""A rank's file, laid out in host memory as it will lie on the disk: copying into it is all that training waits for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_PAGE = 4096
Spec = tuple[str, torch.dtype, tuple[int, ...]]


class HostFile:
    """Memory for a file in the safetensors format, used again as long as the same tensors come.

    The format: 8 bytes that give the length of a JSON header (key: dtype, shape, offsets), the header, and the tensors
    end to end. Written here and not by the package, since it would read live tensors while it writes.
    """

    def __init__(self) -> None:
        self._specs: list[Spec] = []
        self._slots: list[Tensor] = []
        self._content = memoryview(b"")

    def copy(self, tensors: Mapping[str, Tensor]) -> memoryview:
        """The file's bytes, with the tensors as they are now (those of the larger dtype first). On CUDA it waits."""
        specs = [(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]
        on_cuda = any(tensor.is_cuda for tensor in tensors.values())
        if specs != self._specs:
            self._lay_out(specs, pinned=on_cuda)
        for slot, tensor in zip(self._slots, tensors.values(), strict=True):
            slot.copy_(tensor.detach(), non_blocking=True)
        if on_cuda:
            torch.cuda.synchronize()
        return self._content

    def _lay_out(self, specs: list[Spec], *, pinned: bool) -> None:
        header: dict[str, object] = {}
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in specs]
        end = 0
        for (key, dtype, shape), size in zip(specs, sizes, strict=True):
            header[key] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        self._slots, self._content = [], memoryview(b"")  # gone before there are two of them
        buffer = torch.zeros(_PAGE + start + end, dtype=torch.uint8, pin_memory=pinned)
        buffer.fill_(0)  # touches every page now, not while a save holds the loop
        buffer = buffer[-buffer.data_ptr() % _PAGE :][: start + end]  # for writing past the page cache
        self._content = buffer.numpy().data
        self._content[:start] = len(text).to_bytes(8, "little") + text
        pieces = torch.split(buffer[start:], sizes)
        self._slots = [piece.view(dtype).view(shape) for piece, (_, dtype, shape) in zip(pieces, specs, strict=True)]
        self._specs = specs
