"""Variants of the peer that a case is compared with. Torch-free."""

from __future__ import annotations

from benchmarks.cases import Case


def variants(case: Case) -> list[str]:
    """List the variants. Of several for a precision, the fastest counts. XLNet is fed by its collator and by a mask."""
    how = ["fp32"] if case.precision == "fp32" else ["autocast", "bf16 weights"]
    return [f"{h}, {feeding}" for h in how for feeding in ("collator", "mask")] if case.model == "xlnet" else how
