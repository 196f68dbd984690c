"""Tokenizers and the special symbols of their vocabularies. Torch-free."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlpretrain.errors import DataError

SPECIAL_PIECES = {
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("<cls>", "[CLS]"),
    "sep": ("<sep>", "[SEP]"),
    "mask": ("<mask>", "[MASK]"),
    "eod": ("<eod>", "[EOD]"),
}
"""How the special symbols are spelt, by role; the first is what we train."""


_ALL_SPECIAL_PIECES = frozenset(spelling for spellings in SPECIAL_PIECES.values() for spelling in spellings)

WORD_BOUNDARY = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for the space before a word."""

_UNSPACED = re.compile("CJK|HIRAGANA|KATAKANA|THAI|LAO|KHMER|MYANMAR|TIBETAN")


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


class Tokenizer:
    """A SentencePiece model.

    vocabulary: its size and special symbols.
    sha256: of the model file; datasets and runs are tied to it.
    """

    def __init__(self, model: bytes, *, name: str):
        """Raises `DataError` naming `name` if `model` is no SentencePiece model or lacks a special symbol."""
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError):
            raise DataError(f"{name}: not a SentencePiece model") from None
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocabulary = _find_vocabulary(self._processor, name)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """The tokenizer in a SentencePiece model file. Raises `DataError`."""
        try:
            model = Path(path).read_bytes()
        except FileNotFoundError:
            raise DataError(f"{path}: no such tokenizer") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        return cls(model, name=str(path))

    def encode(self, sentence: str) -> list[int]:
        """The ids of a text, without special symbols."""
        ids: list[int] = self._processor.encode(sentence, out_type=int)
        return ids

    def encode_batch(self, sentences: Sequence[str]) -> list[list[int]]:
        """`encode` of every sentence, in this thread."""
        ids: list[list[int]] = self._processor.encode(list(sentences), out_type=int, num_threads=1)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special symbols but the unknown are left out."""
        text: str = self._processor.decode([int(i) for i in ids])
        return text

    def word_starts(self) -> np.ndarray:
        """Which tokens begin a word, by id: special symbols, pieces with a word boundary before them, and all that is
        not a letter of a script that puts spaces between words (digits, punctuation, symbols, ideographs).

        XLNet lets digits go on with a word; ALBERT's rule is this one for lower-case English, and takes every accented
        or capital letter for a word of its own, which is not what its paper means.
        """
        return np.array([_begins_word(self.piece(i)) for i in range(self.vocabulary.size)])

    def piece(self, token: int) -> str:
        """How a token is spelt, special symbols too."""
        piece: str = self._processor.id_to_piece(int(token))
        return piece


def _begins_word(piece: str) -> bool:
    if piece.startswith(WORD_BOUNDARY) or piece in _ALL_SPECIAL_PIECES:
        return True
    return not all(unicodedata.category(c)[0] in "LM" and not _UNSPACED.match(unicodedata.name(c, "")) for c in piece)


def _find_vocabulary(processor: Any, name: str) -> Vocabulary:
    size = processor.get_piece_size()
    pieces = {processor.id_to_piece(i): i for i in range(size)}
    found, missing = {"unk": processor.unk_id()}, []
    for role, spellings in SPECIAL_PIECES.items():
        spelt = next((spelling for spelling in spellings if spelling in pieces), None)
        if spelt is not None:
            found[role] = pieces[spelt]
        elif role not in found:
            missing.append(f"{role} ({' or '.join(spellings)})")
    if missing:
        raise DataError(f"{name}: the vocabulary has no symbol for {', '.join(missing)}; train it with them")
    return Vocabulary(size=size, **found)
