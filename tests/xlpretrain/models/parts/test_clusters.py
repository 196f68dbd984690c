"""The clusters of an adaptive softmax's targets, against a search token by token."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.models.parts.clusters import TargetClusters

EDGES = (0, 5, 9, 17)


@pytest.mark.parametrize("targets", [[], [3], [16], [0, 4, 5, 8, 9, 16], [16, 9, 1, 5, 9, 8, 0, 12]])
def test_each_target_is_in_its_cluster(targets: list[int]):
    found = TargetClusters.find(torch.tensor(targets, dtype=torch.int64), EDGES)
    by_tail = [[i for i, token in enumerate(targets) if start <= token < end] for start, end in ((5, 9), (9, 17))]
    assert found.sizes == tuple(map(len, by_tail))
    assert found.positions.tolist() == [*by_tail[0], *by_tail[1]]
    assert found.within.tolist() == [targets[i] - 5 for i in by_tail[0]] + [targets[i] - 9 for i in by_tail[1]]
    assert found.head.tolist() == [token if token < 5 else 5 if token < 9 else 6 for token in targets]
    assert {tensor.dtype for tensor in (found.head, found.positions, found.within)} == {torch.int64}


def test_clusters_move_to_a_device_with_their_sizes():
    moved = TargetClusters.find(torch.tensor([1, 6, 16]), EDGES).map(lambda tensor: tensor.to("meta"))
    assert moved.sizes == (1, 1)
    assert {tensor.device.type for tensor in (moved.head, moved.positions, moved.within)} == {"meta"}
