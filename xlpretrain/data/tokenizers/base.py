"""Tokenizers and the special symbols of their vocabularies. Torch-free."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

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
    "CJK|HIRAGANA|(HALFWIDTH )?KATAKANA|BOPOMOFO|YI |TANGUT|NUSHU|KHITAN|THAI|LAO|KHMER|MYANMAR|TIBETAN|(NEW )?TAI |"
    "AHOM|JAVANESE|BALINESE|BATAK|BUGINESE"
)
"""Begins the names of the letters of scripts that put no spaces between words."""
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
    """A SentencePiece model. A text that spells out a special symbol is text: it never becomes that symbol.

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
        own = asdict(self.vocabulary)
        symbols = [own[role] for role in SPECIAL_TOKENS]
        if not all(self._processor.is_control(i) or self._processor.is_unknown(i) for i in symbols):
            self._processor.LoadFromSerializedProto(_with_controls(model, symbols))

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
        ideographs). A piece that begins with a combining mark, such as a vowel sign, continues the character before it.
        Of a character that is spelt in bytes only the first one is known, so all characters of three bytes or more
        begin a word: right for ideographs, kana, Thai and symbols, while letters of Korean and Hindi become words.

        XLNet lets digits go on with a word; ALBERT's rule is this one for lower-case English, and takes every accented
        or capital letter for a word of its own, which is not what its paper means.
        """
        return np.array([_begins_word(self.id_to_token(i)) for i in range(self.vocabulary.size)])

    def id_to_token(self, token: int) -> str:
        """The spelling of a token, special symbols included."""
        piece: str = self._processor.id_to_piece(int(token))
        return piece


def _with_controls(model: bytes, symbols: Iterable[int]) -> bytes:
    """A SentencePiece model in which these pieces are control symbols, which it never finds in a text."""
    from sentencepiece import sentencepiece_model_pb2

    parsed = sentencepiece_model_pb2.ModelProto()
    parsed.ParseFromString(model)
    for symbol in symbols:
        if parsed.pieces[symbol].type != parsed.SentencePiece.UNKNOWN:
            parsed.pieces[symbol].type = parsed.SentencePiece.CONTROL
    return bytes(parsed.SerializeToString())


def _begins_word(piece: str) -> bool:
    if byte := _BYTE.fullmatch(piece):
        lead = int(byte[1], 16)
        return lead in (_LATIN_1_SIGNS, *range(_THREE_BYTES, 0x100)) if lead >= 0x80 else not chr(lead).isalpha()
    if piece.startswith(WORD_BOUNDARY) or piece in _ALL_SPECIAL_PIECES:
        return True
    if piece and unicodedata.category(piece[0])[0] == "M":
        return False
    return not all(unicodedata.category(c)[0] in "LM" and not _UNSPACED.match(unicodedata.name(c, "")) for c in piece)


def lone_surrogate(text: str) -> int | None:
    """Find the first character that is half of a surrogate pair and so no Unicode text; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


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
