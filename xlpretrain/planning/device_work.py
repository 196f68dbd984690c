"""Counts of a device's work in a piece of a training step: operations, kept activations, and tensors made on the CPU.

It runs on the meta device, which has shapes and no values, at any size in about a second, and takes the branches of an
accelerator. Where the host would wait for the device (`.item()`, `.tolist()`, `nonzero`), the meta device raises.

Views and allocations are not counted, and fused attention counts as one operation, forward and backward: so the number
is about the number of kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NO_KERNEL = frozenset(
    {
        *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "expand", "lift_fresh"),
        *("narrow", "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose"),
        *("unbind", "unfold", "unsqueeze", "view", "view_as"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("_record_function_enter_new", "_record_function_exit"),
    }
)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations while it is active.

    Attributes:
        counts: number of operations by name.
        moved: bytes that they read and write, by name, if each reads and writes its tensors once.
        from_cpu: names of operations that read a CPU tensor or make one, other than scalars that torch wraps itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.from_cpu: list[str] = []

    @property
    def total(self) -> int:
        """Number of operations."""
        return self.counts.total()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        tensors = [value for value in torch.utils._pytree.tree_leaves((args, result)) if isinstance(value, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.from_cpu.append(name)
        elif name not in NO_KERNEL:
            self.add(name, tensors)
        return result

    def add(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Count an operation on these tensors."""
        self.counts[name] += 1
        distinct = {id(tensor): tensor for tensor in tensors}.values()
        self.moved[name] += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in distinct)


class AsOnCuda:
    """Replaces what CUDA has one kernel for, and the meta device takes apart: fused attention and dropout.

    scaled_dot_product_attention keeps its inputs, its output, and one fp32 number per query; dropout a mask of bytes.
    The functions are exchanged, since a mode of torch would be off in the backward pass, where activation
    checkpointing computes layers again.
    """

    def __enter__(self) -> None:
        functional = torch.nn.functional
        self._replaced = {name: getattr(functional, name) for name in ("dropout", "scaled_dot_product_attention")}
        for name, function in {"dropout": _dropout, "scaled_dot_product_attention": _attention}.items():
            setattr(functional, name, function)

    def __exit__(self, *error: object) -> None:
        for name, function in self._replaced.items():
            setattr(torch.nn.functional, name, function)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    attended: Tensor = _OneKernel.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return attended


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    dropped: Tensor = torch.native_dropout(input, p, True)[0]
    return dropped


class _OneKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output = torch.empty_like(query)  # in the query's layout, as the kernels
        normalizers = query.new_empty(query.shape[:-1], dtype=torch.float32)
        _count("fused_attention", query, key, value, mask, output, normalizers)
        ctx.save_for_backward(query, key, value, mask, output, normalizers)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output, normalizers = ctx.saved_tensors
        needed = zip(ctx.needs_input_grad, (query, key, value, mask), strict=True)
        found = tuple(torch.empty_like(tensor) if need else None for need, tensor in needed)
        _count("fused_attention_backward", query, key, value, mask, output, normalizers, *gradients, *found)
        return found


def _count(name: str, *tensors: Tensor | None) -> None:
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        if isinstance(mode, Operations):
            mode.add(name, [tensor for tensor in tensors if tensor is not None])


@contextmanager
def counted() -> Iterator[Operations]:
    """Count the operations of a block."""
    with Operations() as operations, AsOnCuda():
        yield operations


def kept_bytes(forward: Callable[[], Any], *, without: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for the backward pass: distinct storages, without those of these tensors."""
    skipped = {_storage(tensor) for tensor in without}
    kept: dict[Any, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (place := _storage(tensor)) not in skipped:
            kept[place] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # so that no storage's address is used twice
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), AsOnCuda():
        result = forward()
    del result
    return sum(kept.values())


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata
