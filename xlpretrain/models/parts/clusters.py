"""The clusters of an adaptive softmax (arXiv:1609.04309) in which the targets of a batch lie.

They are found on the CPU, where a batch is made: the number of targets in a cluster is the shape of tensors, which a
device would have to report to the host.

Shapes: N targets, of which M lie outside of the first cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class TargetClusters:
    """The targets of one term by cluster. The tails are the clusters after the first."""

    head: Int[Tensor, " N"]
    """Each target's number in the first softmax: the token itself, or the first cluster's size + the tail's number."""
    positions: Int[Tensor, " M"]
    """The indices of the targets in tails, tail by tail and ascending within each."""
    within: Int[Tensor, " M"]
    """The number of each of these targets within its tail."""
    sizes: tuple[int, ...]
    """Number of targets in each tail; they sum to M."""

    @classmethod
    def find(cls, targets: Int[Tensor, " N"], edges: Sequence[int]) -> TargetClusters:
        """Find the clusters of targets on the CPU. edges: first token of each cluster, and the vocabulary's size."""
        tokens, starts = targets.numpy(), np.array(edges[1:-1])
        tail_of = np.searchsorted(starts, tokens, side="right") - 1  # -1 in the first cluster
        by_tail = [np.flatnonzero(tail_of == tail) for tail in range(len(starts))]
        positions = np.concatenate(by_tail)
        return cls(
            head=torch.from_numpy(np.where(tail_of < 0, tokens, edges[1] + tail_of)),
            positions=torch.from_numpy(positions),
            within=torch.from_numpy(tokens[positions] - starts[tail_of[positions]]),
            sizes=tuple(map(len, by_tail)),
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> TargetClusters:
        """The same clusters with every tensor replaced by `change(tensor)`."""
        return TargetClusters(change(self.head), change(self.positions), change(self.within), self.sizes)
