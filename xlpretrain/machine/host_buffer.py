"""Large buffers in host memory, page-locked where a GPU copies to or from them."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

from xlpretrain.errors import LaunchError

_PAGE = 4096


def host_buffer(num_bytes: int, *, pinned: bool) -> Tensor:
    """Make a buffer of zeroed bytes on the CPU that starts at a page and whose pages all exist.

    pinned: page-lock it with CUDA, so that copies run behind the host. torch's own pinned memory is rounded up to a
    power of two (pytorch#95823): a buffer of 20 GB would take 32 GiB.

    Raises:
        LaunchError: CUDA cannot lock that much memory.
    """
    pages = np.zeros(num_bytes + _PAGE, dtype=np.uint8)
    pages.fill(0)  # touch every page now
    buffer = torch.from_numpy(pages)[-pages.ctypes.data % _PAGE :][:num_bytes]
    if pinned and num_bytes:
        _lock(pages, buffer)
    return buffer


def _lock(pages: np.ndarray, buffer: Tensor) -> None:
    """Page-lock a buffer until `pages`, which own its memory, are freed."""
    cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(cuda.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0))
    if status:
        raise LaunchError(
            f"CUDA could not page-lock {buffer.numel() / 2**30:.1f} GiB of host memory (error {status}); give each rank"
            " more host memory, or run fewer ranks on a machine"
        )
    weakref.finalize(pages, cuda.cudaHostUnregister, buffer.data_ptr()).atexit = False  # the process frees it anyway
