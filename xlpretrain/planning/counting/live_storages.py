"""The memory that tensors take while code runs: now, and at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations allocate while it is active, on this thread, until they are freed.

    Attributes:
        live_bytes: sum of their sizes, and of `reserve`.
        peak_bytes: the largest such sum at the end of an operation.
    """

    def __init__(self, *, device: str | None = None, inputs: bool = False, without: Iterable[Tensor] = ()) -> None:
        """Follow new tensors.

        Args:
            device: type of the device whose tensors count (default: any).
            inputs: also count tensors that operations get, such as NumPy's arrays, which no operation allocates.
            without: tensors that do not count.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self._device, self._inputs = device, inputs
        self._refs: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in without:
            self._follow(tensor, size=0)

    def reserve(self, num_bytes: int) -> None:
        """Count bytes that no tensor stands for; negative: no longer."""
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = _tensors((args, kwargs))
        old = set() if self._inputs else {tensor.untyped_storage()._cdata for tensor in given}
        result = function(*args, **(kwargs or {}))
        for tensor in [*(given if self._inputs else ()), *_tensors(result)]:
            if (self._device in (None, tensor.device.type)) and tensor.untyped_storage()._cdata not in old:
                self._follow(tensor)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _follow(self, tensor: Tensor, *, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._refs:
            size = storage.nbytes() if size is None else size
            self._refs[key] = weakref.ref(storage, partial(self._forget, key, size))
            self.live_bytes += size

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._refs[key]
        self.live_bytes -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
