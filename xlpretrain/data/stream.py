"""Streams: what row a stream reads at a step, and the tokens of it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One row of one stream: a window of tokens and where it stands.

    tokens: at most the objective's window; shorter only at the end of what the stream reads (the collator pads).
    document_ends, sentence_ends: positions in the window whose token is the last of a document or sentence.
    remembered: how many memory positions are this row's own past.
    """

    tokens: np.ndarray
    document_ends: np.ndarray
    sentence_ends: np.ndarray
    stream: int
    epoch: int
    sample: int
    remembered: int
