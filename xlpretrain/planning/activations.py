"""The memory of one micro-batch's forward and backward pass, counted on tensors that have shapes and no values.

The model runs with its weights on the meta device, or on stand-ins for CPU tensors that are backed by it, for which the
code takes the paths of the CPU. Small tensors that are made from the batch alone (masks, positions, dropout bits) are
real, because the CPU's kernels read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine.config import DTYPES
from xlpretrain.models.attention import Attention
from xlpretrain.models.kernels import chunked_loss
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.planning.counting.live_storages import LiveStorages
from xlpretrain.planning.device_work import AsOnCuda
from xlpretrain.planning.full_batches import full_batch

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class PassMemory:
    """Bytes of one micro-batch.

    kept: from the forward pass for the backward pass. batch: the micro-batch itself. next_memory: the streams' next
    memory. peaks: for the forward pass, then for each part of the backward pass until the next gradient is complete,
    the largest sum of kept and temporary tensors, without batch and memories. done: elements of the gradients that are
    complete before each of these.
    """

    kept: int
    batch: int
    next_memory: int
    peaks: tuple[int, ...]
    done: tuple[int, ...]

    def peak(self, held_gradient: int = 0) -> int:
        """The largest sum at any time. held_gradient: bytes per element of a complete gradient, until the end."""
        return max(peak + held_gradient * done for peak, done in zip(self.peaks, self.done, strict=True))


class PassCounter:
    """Counts passes of one run's model at any size of the micro-batch.

    Every number grows linearly with the number of samples, except that the CPU's loss keeps its logits only if they
    fit into one chunk. So two small sizes beyond that limit are counted, and others follow from them.
    """

    def __init__(self, config: RunConfig, *, vocab_size: int, device: DeviceKind):
        self.model = model_without_values(config, vocab_size=vocab_size, device=device)
        self._config, self._vocab_size, self._device = config, vocab_size, device
        self._counted: dict[int, PassMemory] = {}

    def at(self, num_samples: int) -> PassMemory:
        """A pass of a micro-batch of this size."""
        first = self._first_linear(num_samples)
        if num_samples <= first + 1:
            return self._count(num_samples)
        low, high, times = self._count(first), self._count(first + 1), num_samples - first
        return PassMemory(
            kept=_extended(low.kept, high.kept, times),
            batch=_extended(low.batch, high.batch, times),
            next_memory=_extended(low.next_memory, high.next_memory, times),
            peaks=tuple(_extended(*pair, times) for pair in zip(low.peaks, high.peaks, strict=True)),
            done=low.done,
        )

    def _first_linear(self, num_samples: int) -> int:
        """The size from which on the numbers grow linearly up to this size: 2, since a batch of 1 broadcasts."""
        one = full_batch(self._config, self.model.backbone, vocab_size=self._vocab_size, num_samples=1)
        logits = max(one.counts.values()) * self._vocab_size
        limit = chunked_loss._LOGITS
        if self._device != "cpu" or num_samples * logits <= limit:
            return 2
        return max(2, math.ceil(2 * limit / logits))

    def _count(self, num_samples: int) -> PassMemory:
        if num_samples not in self._counted:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                batch = full_batch(
                    self._config, self.model.backbone, vocab_size=self._vocab_size, num_samples=num_samples
                )
                self._counted[num_samples] = _pass_memory(
                    self.model, batch, mem_len=self._config.model.mem_len, device=self._device
                )
        return self._counted[num_samples]


def model_without_values(config: RunConfig, *, vocab_size: int, device: DeviceKind) -> PretrainingModel:
    """The model that a run's engine trains, in its precision, with weights that have no values."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = config.build_model(vocab_size).to(DTYPES[config.engine.precision]).train()
    model.backbone.activation_checkpointing = config.engine.activation_checkpointing
    for module in model.modules():
        if isinstance(module, Attention) and config.engine.attention is not None:
            module.implementation = config.engine.attention
    if device == "cpu":
        _stand_for_cpu(model)
    return model


def _stand_for_cpu(model: nn.Module) -> None:
    """Replace a model's meta tensors by stand-ins for CPU tensors; tied ones stay tied."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in made:
                    stand_in = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
                    made[tensor] = nn.Parameter(stand_in, tensor.requires_grad) if tensor.requires_grad else stand_in
                if tensor is not None:
                    tensors[name] = made[tensor]  # type: ignore[assignment]


def _pass_memory(model: PretrainingModel, batch: Batch, *, mem_len: int, device: DeviceKind) -> PassMemory:
    batch_bytes = sum(tensor.nbytes for tensor in _tensors_of(batch))
    mems = model.backbone.empty_memory(len(batch.inputs.tokens), mem_len)
    if device == "cuda":
        batch = batch.map(lambda tensor: tensor.to("meta"))
    given = [*model.parameters(), *model.buffers(), mems, *_tensors_of(batch)]
    live = LiveStorages(device="cpu" if device == "cpu" else "meta", inputs=device == "cpu", without=given)
    peaks: list[int] = []
    done = [0]

    def end_of_part(num_elements: int = 0) -> None:
        peaks.append(live.peak_bytes)
        done.append(done[-1] + num_elements)
        live.peak_bytes = live.live_bytes

    def hand_over(parameter: Tensor) -> None:
        parameter.grad = None
        end_of_part(parameter.numel())

    with ExitStack() as stack:
        for parameter in model.parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(hand_over)  # type: ignore[no-untyped-call]
                stack.callback(handle.remove)
        stack.enter_context(AsOnCuda() if device == "cuda" else ScalarsAreReal())  # type: ignore[no-untyped-call]
        stack.enter_context(live)
        loss, following = model(batch, mems)
        next_memory = following.untyped_storage().nbytes()
        live.reserve(-next_memory)
        kept = live.live_bytes
        total = torch.stack(list(loss.sums.values())).sum()
        del loss
        end_of_part()
        torch.autograd.backward(total)  # not `total.backward()`, during which torch turns function modes off
        end_of_part()
    return PassMemory(kept, batch_bytes, next_memory, tuple(peaks), tuple(done[:-1]))


class ScalarsAreReal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes zeros of no dimension real: where nothing is masked, they are the mask that the CPU's kernel reads."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten.new_zeros.default and list(args[1]) == []:
            return torch.zeros((), dtype=args[0].dtype)
        return function(*args, **(kwargs or {}))


def _tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(collect)
    return found


def _extended(low: int, high: int, times: int) -> int:
    return low + times * (high - low)
