"""Buffers in host memory: their place and size, and CUDA's lock on their pages (the CUDA runtime is a fake)."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.errors import LaunchError
from xlpretrain.machine.host_buffer import host_buffer

SIZE = 5_000_001


class FakeCuda:
    """Page locks by address, with their sizes."""

    def __init__(self, status: int = 0):
        self.status, self.locked = status, dict[int, int]()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        self.locked[address] = size
        return self.status

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.locked.pop(address)
        return 0


def test_a_buffer_is_zeros_from_the_start_of_a_page_on() -> None:
    buffer = host_buffer(SIZE, pinned=False)
    assert buffer.shape == (SIZE,) and buffer.dtype == torch.uint8 and not buffer.any()
    assert buffer.data_ptr() % 4096 == 0
    assert host_buffer(0, pinned=True).shape == (0,)


def test_exactly_its_bytes_are_locked_until_its_last_view_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    view = host_buffer(SIZE, pinned=True)[7:]
    assert cuda.locked == {view.data_ptr() - 7: SIZE}
    del view
    assert not cuda.locked


def test_memory_that_cannot_be_locked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: FakeCuda(status=2))
    with pytest.raises(LaunchError, match=r"could not page-lock 0\.0 GiB of host memory \(error 2\)"):
        host_buffer(SIZE, pinned=True)
