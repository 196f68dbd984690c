"""Scores by position in memory, of the queries for which the programs do not make them: products before and after."""

from __future__ import annotations

import torch
from torch import Tensor

from xlpretrain.models.kernels.fused.launch import Call
from xlpretrain.models.kernels.fused.tiles import LARGEST


class ScoresInMemory:
    """The scores by position of the last P queries, "N (B P) R"; shapes as in `operators.py`.

    One batch of products over the heads, for both directions at once: vectors of a distance are side by side (J), and
    queries have zeros in the half of the other direction.
    """

    def __init__(self, call: Call):
        self._call = call
        by_position_BPNH = call.by_position[:, call.in_band :]
        self._own_BG = None  # True for a sample's direction
        if len(call.distance) > 1:
            assert call.directions is not None
            sets = torch.arange(len(call.distance), device=call.distance.device, dtype=call.directions.dtype)
            self._own_BG = call.directions[:, None] == sets
            by_position_BPNH = (by_position_BPNH[..., None, :] * self._own_BG[:, None, None, :, None]).flatten(-2)
        self._rows_NSJ = by_position_BPNH.flatten(0, 1).transpose(0, 1)
        self._distance_NRJ = call.distance.permute(2, 1, 0, 3).flatten(2)
        num_heads, rows, num_distances = *self._rows_NSJ.shape[:2], call.num_distances
        size = num_heads * rows * num_distances
        # After them is room for the rows and keys that the last tile reads beyond its end.
        room = self._rows_NSJ.new_empty(size + 2 * LARGEST * (num_distances + 1))[:size]
        self.scores = room.view(num_heads, rows, num_distances)
        torch.bmm(self._rows_NSJ, self._distance_NRJ.transpose(1, 2), out=self.scores)

    def add_gradients(self, d_scores: Tensor, d_by_position_BQNH: Tensor, d_distance_GRNH: Tensor | None) -> Tensor:
        """Write the gradient of the last P queries by position, and return that of the distances.

        d_distance_GRNH: the gradient from other queries, if any.
        """
        call, sets = self._call, len(self._call.distance)
        d_rows_NSJ = torch.bmm(d_scores, self._distance_NRJ)
        d_rows_BPNJ = d_rows_NSJ.transpose(0, 1).view(call.samples, call.in_memory, call.heads, -1)
        if self._own_BG is not None:
            d_rows_BPNGH = d_rows_BPNJ.view(*d_rows_BPNJ.shape[:3], sets, call.width)
            d_rows_BPNJ = (d_rows_BPNGH * self._own_BG[:, None, None, :, None]).sum(3)
        d_by_position_BQNH[:, call.in_band :] = d_rows_BPNJ
        d_distance_NRJ = torch.bmm(d_scores.transpose(1, 2), self._rows_NSJ)
        mine_GRNH = d_distance_NRJ.view(call.heads, call.num_distances, sets, call.width).permute(2, 1, 0, 3)
        return mine_GRNH.contiguous() if d_distance_GRNH is None else d_distance_GRNH + mine_GRNH
