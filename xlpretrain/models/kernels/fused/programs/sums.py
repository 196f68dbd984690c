"""The sum of partial sums."""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def column_sums(partials, output, P, COLUMNS, BR: tl.constexpr, BC: tl.constexpr):
    """The sum of each of BC columns over P rows."""
    column = tl.program_id(0) * BC + tl.arange(0, BC)
    sums = tl.zeros([BR, BC], tl.float32)
    for start in range(0, P, BR):
        row = start + tl.arange(0, BR)
        at = row.to(tl.int64)[:, None] * COLUMNS + column[None, :]
        sums += tl.load(partials + at, mask=(row < P)[:, None] & (column < COLUMNS)[None, :], other=0.0)
    tl.store(output + column, tl.sum(sums, 0).to(output.dtype.element_ty), mask=column < COLUMNS)
