"""The layout of training state in memory, shared by both engines.

A *master* is an fp32 tensor that the optimizer updates and that keys its state: a single parameter if state is
replicated, a flat partition of many parameters under ZeRO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xlpretrain.optim.base import LayerwiseOptimizer, TensorSlice
from xlpretrain.optim.groups import StateKeys


@dataclass(frozen=True)
class StateShard:
    """Training state that this rank owns: elements [start, stop) of a flattened parameter.

    kind: `weight` (the fp32 master), or one of the parameter's state keys (`exp_avg`, `exp_avg_sq`).
    tensor: a live 1-D fp32 view; the shards of all ranks cover every parameter exactly once.
    """

    kind: str
    name: str
    start: int
    stop: int
    tensor: Tensor


ReadRange = Callable[[str, str, int, int], Tensor]
"""(kind, parameter name, start, stop) -> a 1-D fp32 tensor on the CPU."""


@dataclass(frozen=True)
class ParameterShard:
    """Elements [start, stop) of the flattened parameter `name`, stored in the flattened `master` at `offset`."""

    master: Tensor
    offset: int
    name: str
    start: int
    stop: int

    def view(self, tensor: Tensor) -> Tensor:
        """The shard's elements in a tensor with the layout of the master: the master itself or its optimizer state."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.stop - self.start]


@dataclass(frozen=True)
class FusedTensors:
    """Tensors number `first` to `first + count - 1` of the model, stored in one parameter, of `size` elements and
    `shape` each."""

    first: int
    count: int
    size: int
    shape: tuple[int, ...]


def fused_tensors(model: nn.Module) -> dict[str, FusedTensors]:
    """The tensors of each parameter by name, tied ones once: `num_fused` tensors if it has that attribute, else one.

    Must be called before ZeRO wraps the model.
    """
    found: dict[str, FusedTensors] = {}
    first = 0
    for name, parameter in model.named_parameters():
        count = getattr(parameter, "num_fused", 1)
        assert parameter.shape[:1].numel() % count == 0, f"{name} of shape {parameter.shape} is not {count} tensors"
        shape = (parameter.shape[0] // count, *parameter.shape[1:]) if parameter.ndim else ()
        found[name] = FusedTensors(first, count, parameter.numel() // count, shape)
        first += count
    return found


class Partition:
    """The shards of state that one rank holds, and the optimizer that updates them.

    Attributes:
        num_updates: number of updates made; counted by the engine, since not every optimizer counts them. A scalar on
            the device where the engine decides there whether to update.
    """

    def __init__(
        self,
        shards: Sequence[ParameterShard],
        optimizer: torch.optim.Optimizer,
        masters: Mapping[Tensor, StateKeys],
        *,
        fused: Mapping[str, FusedTensors],
        replicated: bool,
        frozen: Sequence[ParameterShard] = (),
    ):
        """Initialize the optimizer's state with zeros for each state key of each master.

        Args:
            masters: every master of this rank, even one that is all padding, with its group's state keys.
            replicated: True if every rank holds all of the state and saves a share of it.
            frozen: parameters that are not trained, whole on every rank, each in a tensor of its own.
        """
        self.shards, self.frozen = list(shards), list(frozen)
        self.replicated = replicated
        self.optimizer = optimizer
        self.num_updates: int | Tensor = 0
        self.master_weights = list(masters)
        self._kinds = {master: ("weight", *keys) for master, keys in masters.items()}
        self._kinds |= {shard.master: ("weight",) for shard in self.frozen}
        for master, keys in masters.items():
            # One step counter each: torch increments it in place, so a shared one would be incremented repeatedly.
            state: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.float32, device=master.device)}
            state.update((key, torch.zeros_like(master, memory_format=torch.preserve_format)) for key in keys)
            optimizer.state[master] = state
        if isinstance(optimizer, LayerwiseOptimizer):
            slices: dict[Tensor, list[TensorSlice]] = {master: [] for master in self.master_weights}
            for shard in shards:
                slices[shard.master] += _slices(shard, fused[shard.name])
            num_tensors = sum(tensors.count for tensors in fused.values())
            optimizer.set_parameter_slices(
                slices, num_tensors=num_tensors, group=None if replicated else dist.group.WORLD
            )

    def ranges(self) -> list[StateShard]:
        """Live views of the weights and optimizer state that this rank saves."""
        together = self.shards + self.frozen
        return [
            StateShard(kind, shard.name, shard.start, shard.stop, shard.view(self._tensor(shard.master, kind)))
            for shard in (_share(together) if self.replicated else self.shards + _share(self.frozen))
            for kind in self._kinds[shard.master]
        ]

    def ranges_to_load(self) -> list[tuple[str, int, int]]:
        """The ranges (name, start, stop) that `load` reads, for each kind of a parameter's state."""
        return [(shard.name, shard.start, shard.stop) for shard in self.shards + self.frozen]

    @torch.no_grad()
    def load(self, read: ReadRange, updates: int | None, *, fresh: Set[str] = frozenset()) -> None:
        """Fill the masters and the optimizer's state, which is reset if `updates` is None. Padding becomes zero.

        fresh: parameters that keep their initial values.
        """
        self.num_updates = made = updates or 0
        shards = self.shards + self.frozen
        drawn = {i: shard.view(shard.master).clone() for i, shard in enumerate(shards) if shard.name in fresh}
        for master in self.master_weights:
            for kind in self._kinds[master]:
                self._tensor(master, kind).detach().zero_()
            self.optimizer.state[master]["step"].fill_(made)
        for i, shard in enumerate(shards):
            for kind in self._kinds[shard.master] if updates is not None else ("weight",):
                values = drawn[i] if i in drawn else read(kind, shard.name, shard.start, shard.stop)
                shard.view(self._tensor(shard.master, kind)).copy_(values)

    def _tensor(self, master: Tensor, kind: str) -> Tensor:
        if kind == "weight":
            return master
        state: Tensor = self.optimizer.state[master][kind]
        return state


def _slices(shard: ParameterShard, tensors: FusedTensors) -> list[TensorSlice]:
    """Slices of a shard, split at the boundaries of fused tensors."""
    found = []
    for index in range(shard.start // tensors.size, -(-shard.stop // tensors.size)):
        start, stop = max(shard.start, index * tensors.size), min(shard.stop, (index + 1) * tensors.size)
        place = shard.offset + start - shard.start
        within = start - index * tensors.size
        found.append(TensorSlice(tensors.first + index, place, stop - start, within, tensors.shape))
    return found


def _share(shards: Sequence[ParameterShard]) -> list[ParameterShard]:
    """The part of replicated shards that this rank saves: one of world_size equal parts of all their elements."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    total = sum(shard.stop - shard.start for shard in shards)
    low, high = rank * total // world_size, (rank + 1) * total // world_size
    mine: list[ParameterShard] = []
    before = 0
    for shard in shards:
        size = shard.stop - shard.start
        start, stop = max(low - before, 0), min(high - before, size)
        if start < stop:
            mine.append(
                ParameterShard(shard.master, shard.offset + start, shard.name, shard.start + start, shard.start + stop)
            )
        before += size
    return mine
