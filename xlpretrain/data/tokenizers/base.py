"""Tokenizers and the special symbols of their vocabularies. Torch-free."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xlpretrain.errors import DataError

SPECIAL_TOKENS = {
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("<cls>", "[CLS]"),
    "sep": ("<sep>", "[SEP]"),
    "mask": ("<mask>", "[MASK]"),
    "eod": ("<eod>", "[EOD]"),
}
"""The spellings of the special symbols, by role; the first one is used for new tokenizers."""


_ALL_SPECIAL_PIECES = frozenset(spelling for spellings in SPECIAL_TOKENS.values() for spelling in spellings)

WORD_BOUNDARY = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's symbol for the space before a word."""

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_UNSPACED = re.compile(
    "CJK|HIRAGANA|(HALFWIDTH )?KATAKANA|BOPOMOFO|TANGUT|THAI|LAO|KHMER|MYANMAR|TIBETAN|(NEW )?TAI |JAVANESE|BALINESE"
)
_LATIN_1_SIGNS, _THREE_BYTES = 0xC2, 0xE0
"""Lead bytes in UTF-8: of U+0080 to U+00BF; and, with those above, of what takes three bytes or more."""


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

    file_name = "spiece.model"
    """The name of its file in a dataset or a run."""
    strips_sentences = False
    """True if sentences of a dataset are encoded without surrounding white space, which would become tokens."""

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
        pieces = {self._processor.id_to_piece(i): i for i in range(self._processor.get_piece_size())}
        self.vocabulary = find_special_tokens(pieces, {"unk": self._processor.unk_id()}, name)

    def encode(self, sentence: str) -> list[int]:
        """The ids of a text, without special symbols."""
        ids: list[int] = self._processor.encode(sentence, out_type=int)
        return ids

    def encode_batch(self, sentences: Sequence[str]) -> list[list[int]]:
        """`encode` of every sentence, in this thread: SentencePiece's own for lists starts one at every call."""
        return [self.encode(sentence) for sentence in sentences]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special symbols but the unknown are left out."""
        text: str = self._processor.decode([int(i) for i in ids])
        return text

    def word_starts(self) -> np.ndarray:
        """Mask of the tokens that begin a word, by id: special symbols, pieces with a word boundary before them, and
        everything that is not a letter of a script that puts spaces between words (digits, punctuation, symbols,
        ideographs). Of a character that is spelt in bytes only the first one is known, so all characters of three bytes
        or more begin a word: right for ideographs, kana, Thai and symbols, while letters of Korean and Hindi become
        words.

        XLNet lets digits go on with a word; ALBERT's rule is this one for lower-case English, and takes every accented
        or capital letter for a word of its own, which is not what its paper means.
        """
        return np.array([_begins_word(self.id_to_token(i)) for i in range(self.vocabulary.size)])

    def id_to_token(self, token: int) -> str:
        """The spelling of a token, special symbols included."""
        piece: str = self._processor.id_to_piece(int(token))
        return piece


def _begins_word(piece: str) -> bool:
    if byte := _BYTE.fullmatch(piece):
        lead = int(byte[1], 16)
        return lead in (_LATIN_1_SIGNS, *range(_THREE_BYTES, 0x100)) if lead >= 0x80 else not chr(lead).isalpha()
    if piece.startswith(WORD_BOUNDARY) or piece in _ALL_SPECIAL_PIECES:
        return True
    return not all(unicodedata.category(c)[0] in "LM" and not _UNSPACED.match(unicodedata.name(c, "")) for c in piece)


def find_special_tokens(pieces: Mapping[str, int], known: Mapping[str, int], name: str) -> Vocabulary:
    """The special symbols among the pieces of a vocabulary, or `known` by role. Raises `DataError` if one is missing.

    Vocabularies of ALBERT and BERT have none for the end of a document: there it is that of the end of a part. A piece
    may stand in a vocabulary twice (a symbol that was learned too), so the size follows from the highest id.
    """
    found, missing = dict(known), []
    for role, spellings in SPECIAL_TOKENS.items():
        spelt = next((spelling for spelling in spellings if spelling in pieces), None)
        if spelt is not None:
            found[role] = pieces[spelt]
        elif role not in found and role != "eod":
            missing.append(f"{role} ({' or '.join(spellings)})")
    if missing:
        raise DataError(f"{name}: the vocabulary has no symbol for {', '.join(missing)}; train it with them")
    return Vocabulary(size=max(pieces.values()) + 1, **{"eod": found["sep"], **found})
