"""The special tokens and segments around a text or a pair of texts. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from xlpretrain.data.tokenizers.base import SPECIAL_TOKENS, Vocabulary

Ids = Sequence[int] | np.ndarray
_TEXTS = ("A", "B")


@dataclass(frozen=True)
class LayoutPart:
    """A text (`A` or `B`) or a special token (by its role in `Vocabulary`), and its segment."""

    what: str
    segment: int

    @property
    def is_text(self) -> bool:
        """True for `A` and `B`."""
        return self.what in _TEXTS


@dataclass(frozen=True)
class LaidOut:
    """A sample: ids [T] and segments [T], int64, and the start and stop of each text in it."""

    tokens: np.ndarray
    segments: np.ndarray
    texts: list[tuple[int, int]]


@dataclass(frozen=True)
class TokenLayout:
    """The order of special tokens and texts in a sample, declared once per objective.

    Each string lists parts separated by spaces: `A` and `B` are the texts, the others are roles of special tokens
    (`cls`, `sep`, `eod`, ...). A suffix such as `:1` is the part's segment (default: 0). BERT's layout is
    `TokenLayout("cls A sep", "cls A sep B:1 sep:1")`.

    Raises:
        ValueError: a part is unknown, or the texts are not A in `single` and A, then B in `pair`.
    """

    single: str
    pair: str

    def __post_init__(self) -> None:
        for layout, texts in ((self.single, ["A"]), (self.pair, ["A", "B"])):
            parts = _parse(layout)
            unknown = [p.what for p in parts if not p.is_text and p.what not in SPECIAL_TOKENS]
            if unknown or [p.what for p in parts if p.is_text] != texts:
                known = ", ".join(SPECIAL_TOKENS)
                raise ValueError(
                    f"a layout has {' and '.join(texts)} once each, in this order, among special tokens ({known}), such"
                    f" as 'cls A sep'; got {layout!r}"
                )

    @classmethod
    def parse(cls, text: str) -> TokenLayout:
        """The layout named `text`, or written out as `single | pair`. Raises ValueError."""
        if text in LAYOUTS:
            return LAYOUTS[text]
        single, _, pair = text.partition("|")
        return cls(single.strip(), pair.strip())

    def __str__(self) -> str:
        """The inverse of `parse`."""
        return next((name for name, known in LAYOUTS.items() if known == self), f"{self.single} | {self.pair}")

    def parts(self, num_texts: int) -> tuple[LayoutPart, ...]:
        """The parts of a sample with 1 or 2 texts; with 0 texts, the special tokens before the first text."""
        return self._parts[num_texts]

    def num_symbols(self, num_texts: int) -> int:
        """Number of special tokens in a sample with `num_texts` texts."""
        return len(self.parts(num_texts)) - num_texts

    def num_segments(self, num_texts: int) -> int:
        """Number of segments in a sample with `num_texts` texts."""
        return 1 + max(part.segment for part in self.parts(num_texts))

    @property
    def cls_position(self) -> Literal["first", "last"] | None:
        """The position of the `cls` token; None if there is none."""
        single = self.parts(1)
        return "first" if single[0].what == "cls" else "last" if single[-1].what == "cls" else None

    @property
    def is_plain(self) -> bool:
        """True if texts are laid out as in a document, with only `eod` around them."""
        return all(part.is_text or part.what == "eod" for part in self.parts(2))

    def prefix(self, vocabulary: Vocabulary) -> list[int]:
        """The special token ids before a text."""
        return [getattr(vocabulary, part.what) for part in self.parts(0)]

    def end(self, vocabulary: Vocabulary) -> int | None:
        """The id of the special token after a single text; None if there is none."""
        after = self.parts(1)[len(self.parts(0)) + 1 :]
        return getattr(vocabulary, after[0].what) if after else None

    def lay_out(self, texts: Sequence[Ids], vocabulary: Vocabulary) -> LaidOut:
        """Make a sample from 0, 1 or 2 texts."""
        num_tokens = sum(map(len, texts)) + self.num_symbols(len(texts))
        tokens, segments = np.zeros((2, num_tokens), np.int64)
        _, places = self.write(texts, vocabulary, tokens, segments)
        return LaidOut(tokens, segments, places)

    def write(
        self, texts: Sequence[Ids], vocabulary: Vocabulary, tokens: np.ndarray, segments: np.ndarray
    ) -> tuple[int, list[tuple[int, int]]]:
        """Write the sample of 0, 1 or 2 texts to the start of `tokens` and `segments` [T]; `segments` must be all 0.

        Returns the sample's length, and each text's start and stop.
        """
        at, places, remaining = 0, list[tuple[int, int]](), iter(texts)
        for part in self._parts[len(texts)]:
            start = at
            if part.is_text:
                text = next(remaining)
                at += len(text)
                tokens[start:at] = text
                places.append((start, at))
            else:
                at += 1
                tokens[start] = getattr(vocabulary, part.what)
            if part.segment:
                segments[start:at] = part.segment
        return at, places

    @cached_property
    def _parts(self) -> tuple[tuple[LayoutPart, ...], ...]:
        single = _parse(self.single)
        before = single[: next(i for i, part in enumerate(single) if part.is_text)]
        return before, single, _parse(self.pair)


def _parse(layout: str) -> tuple[LayoutPart, ...]:
    """Parse one string. A word with a non-numeric segment is kept whole, and so is an unknown part."""
    words = ((word, *word.partition(":")) for word in layout.split())
    return tuple(
        LayoutPart(what, int(segment or 0)) if (segment or "0").isdigit() else LayoutPart(word, 0)
        for word, what, _, segment in words
    )


CLS_FIRST = TokenLayout("cls A sep", "cls A sep B:1 sep:1")
"""BERT (arXiv:1810.04805, section 3.2) and ALBERT."""
CLS_LAST = TokenLayout("A sep cls:2", "A sep B:1 sep:1 cls:2")
"""XLNet (arXiv:1906.08237, section 2.5)."""
DOCUMENT = TokenLayout("eod A eod", "eod A eod B eod")
"""Causal models, which see texts as documents."""
LAYOUTS = {"cls_first": CLS_FIRST, "cls_last": CLS_LAST, "document": DOCUMENT}
"""The layouts that a config can name."""
