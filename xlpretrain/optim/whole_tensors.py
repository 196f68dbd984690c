"""Whole tensors, each on one rank for a moment, from the slices that ZeRO leaves on all ranks.

An update that needs whole matrices (Muon) works on slices as follows: every rank sends its slices of a tensor to the
rank that owns the tensor in this exchange; owners compute; and the results go back to where the slices came from. Two
all-to-alls for each master, in which every element travels at most twice. Owners are chosen by the size of the tensors
alone, so the result does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.optim.base import TensorSlice

Transform = Callable[[Tensor], Tensor]
"""From a whole tensor to one of the same shape."""


@dataclass(frozen=True)
class _Plan:
    """One master's exchange, for this rank. Both lists have an entry for each rank.

    outgoing: slices of this rank's master, by owner. incoming: slices of the tensors that this rank owns, by holder.
    """

    outgoing: Sequence[Sequence[TensorSlice]]
    incoming: Sequence[Sequence[TensorSlice]]


class WholeTensors:
    """Applies functions of whole tensors to tensors with the layout of a master."""

    def __init__(self, slices: Mapping[Tensor, Sequence[TensorSlice]], group: dist.ProcessGroup | None):
        """Every rank of the group must call it, with its masters in the same order.

        Args:
            slices: slices of every master of this rank; padding belongs to no slice.
            group: ranks that hold the other parts of the tensors; None if every rank holds all of them.
        """
        self._slices, self._group = slices, group
        self._plans: dict[Tensor, _Plan] = {}
        if group is None:
            return
        of_ranks: list[list[Sequence[TensorSlice]]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(of_ranks, list(slices.values()), group=group)
        for number, master in enumerate(slices):
            self._plans[master] = _plan([held[number] for held in of_ranks], rank=dist.get_rank(group))

    def apply(self, transform: Transform, values: Tensor, *, master: Tensor) -> None:
        """Replace every tensor in `values`, laid out as `master`, by its transform. Every rank of the group must call
        it, for the same masters in the same order."""
        if self._group is None:
            for s in self._slices[master]:
                part = s.of(values)
                part.copy_(transform(part.view(s.shape)).reshape(-1))
            return
        plan = self._plans[master]
        here = torch.cat([values.new_empty(0), *(s.of(values) for to in plan.outgoing for s in to)])
        there = values.new_empty(sum(s.size for held in plan.incoming for s in held))
        sizes_here, sizes_there = ([sum(s.size for s in part) for part in of] for of in (plan.outgoing, plan.incoming))
        self._send(here, there, sizes_here, sizes_there)
        for parts in _by_tensor(there, plan.incoming):
            shape = parts[0][0].shape
            whole = values.new_empty(shape)
            for s, part in parts:
                whole.view(-1)[s.start : s.start + s.size] = part
            found = transform(whole).reshape(-1)
            for s, part in parts:
                part.copy_(found[s.start : s.start + s.size])
        self._send(there, here, sizes_there, sizes_here)
        for s, part in _cut(here, plan.outgoing):
            s.of(values).copy_(part)

    def _send(self, source: Tensor, target: Tensor, sent: list[int], received: list[int]) -> None:
        with distributed.waiting():
            dist.all_to_all_single(target, source, received, sent, group=self._group)


def owners(sizes: Mapping[int, int], num_ranks: int) -> dict[int, int]:
    """The rank that owns each tensor: from the largest tensor on, the one with the fewest elements so far."""
    loads, found = [0] * num_ranks, {}
    for tensor in sorted(sizes, key=lambda tensor: (-sizes[tensor], tensor)):
        found[tensor] = min(range(num_ranks), key=lambda rank: (loads[rank], rank))
        loads[found[tensor]] += sizes[tensor]
    return found


def _plan(of_ranks: Sequence[Sequence[TensorSlice]], *, rank: int) -> _Plan:
    sizes: dict[int, int] = {}
    for s in (s for held in of_ranks for s in held):
        sizes[s.tensor] = sizes.get(s.tensor, 0) + s.size
    owner = owners(sizes, len(of_ranks))
    return _Plan(
        outgoing=[[s for s in of_ranks[rank] if owner[s.tensor] == to] for to in range(len(of_ranks))],
        incoming=[[s for s in held if owner[s.tensor] == rank] for held in of_ranks],
    )


def _cut(buffer: Tensor, of_ranks: Sequence[Sequence[TensorSlice]]) -> list[tuple[TensorSlice, Tensor]]:
    """The slices with their parts of a buffer that holds them one after another."""
    slices = [s for of in of_ranks for s in of]
    return list(zip(slices, torch.split(buffer, [s.size for s in slices]), strict=True)) if slices else []


def _by_tensor(buffer: Tensor, of_ranks: Sequence[Sequence[TensorSlice]]) -> list[list[tuple[TensorSlice, Tensor]]]:
    found: dict[int, list[tuple[TensorSlice, Tensor]]] = {}
    for s, part in _cut(buffer, of_ranks):
        found.setdefault(s.tensor, []).append((s, part))
    return list(found.values())
