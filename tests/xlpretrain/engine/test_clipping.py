"""Clipping on the device against clipping on the host, and numbers on their way to the host.

Modules: clipping.py, host_copy.py.
"""

from __future__ import annotations

import math

import pytest
import torch

from xlpretrain.engine.clipping import LARGEST_NORM, clip_by_global_norm, clip_on_device
from xlpretrain.engine.transfers.host_copy import HostCopy


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
@pytest.mark.parametrize("spoiled", [None, math.nan, math.inf, -math.inf, 2 * LARGEST_NORM])
def test_device_and_host_agree_on_the_norm_and_on_the_gradient(max_norm: float, spoiled: float | None) -> None:
    flat = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    if spoiled is not None:
        flat[1234] = spoiled
    on_host = flat.clone()
    expected = clip_by_global_norm([on_host], max_norm)
    clipped = clip_on_device(flat, max_norm)
    assert clipped.norm.dtype == torch.float64
    assert (clipped.is_finite.item(), clipped.found_inf.item()) == (spoiled is None, float(spoiled is not None))
    if spoiled is None:
        assert float(clipped.norm) == pytest.approx(expected, rel=1e-7)
        assert torch.allclose(flat, on_host, rtol=1e-6, atol=0)
    else:
        assert not math.isfinite(expected)
        assert str(float(clipped.norm)) == str(expected)


def test_a_gradient_within_the_norm_keeps_its_bits() -> None:
    flat = torch.randn(5000)
    before = flat.clone()
    clip_on_device(flat, 1e6)
    assert torch.equal(flat, before)


def test_a_copy_for_the_host_is_read_late() -> None:
    assert float(HostCopy(torch.tensor(0.1))) == float(torch.tensor(0.1))
    unread = HostCopy(torch.zeros((), device="meta"))
    with pytest.raises(RuntimeError, match="meta"):
        float(unread)
