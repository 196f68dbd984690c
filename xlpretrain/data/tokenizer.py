"""Tokenizers and the special symbols of their vocabularies. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """The size of a vocabulary and the ids of its special symbols, found by role."""

    size: int
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    eod: int
