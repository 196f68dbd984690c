"""Tokenizers and the special symbols of their vocabularies. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def piece(self, token: int) -> str:
        """How a token is spelt, special symbols too."""
        piece: str = self._processor.id_to_piece(int(token))
        return piece


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
