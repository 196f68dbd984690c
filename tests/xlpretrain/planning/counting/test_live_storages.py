"""Followed storages, on operations whose memory is counted by hand."""

from __future__ import annotations

import numpy as np
import torch

from xlpretrain.planning.counting.live_storages import LiveStorages


def test_the_peak_has_what_is_gone_and_the_sum_has_not():
    with LiveStorages() as live:
        kept = torch.zeros(10)
        torch.zeros(100).sum()
        view = kept.view(2, 5)
    assert live.live_bytes == 40
    assert live.peak_bytes == 40 + 400 + 4
    del kept
    assert live.live_bytes == 40, "a view keeps its storage"
    del view
    assert live.live_bytes == 0


def test_arrays_count_if_inputs_do_and_tensors_that_were_there_do_not():
    there = torch.zeros(1000)
    with LiveStorages(inputs=True, without=[there]) as live:
        (torch.from_numpy(np.ones(6, np.float32)) + there[:6]).sum()
    assert (live.live_bytes, live.peak_bytes) == (0, 24 + 24)
    with LiveStorages() as live:
        there.add_(1)
        held = there * 1
    assert (live.live_bytes, live.peak_bytes, len(held)) == (4000, 4000, 1000)


def test_reserved_bytes_count_on_one_device():
    with LiveStorages(device="meta") as live:
        live.reserve(7)
        torch.zeros(100)
        on_meta = torch.empty(3, device="meta")
    assert (live.live_bytes, live.peak_bytes, on_meta.nbytes) == (19, 19, 12)
