"""SentencePiece tokenizers and the special tokens of vocabularies. Torch-free."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from xlpretrain.errors import ConfigError, DataError

SPECIAL_TOKENS = {
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("<cls>", "[CLS]"),
    "sep": ("<sep>", "[SEP]"),
    "mask": ("<mask>", "[MASK]"),
    "eod": ("<eod>", "[EOD]"),
}
"""The spellings of the special tokens, by role. New tokenizers use the first one."""


_ALL_SPECIAL_PIECES = frozenset(spelling for spellings in SPECIAL_TOKENS.values() for spelling in spellings)

WORD_BOUNDARY = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's symbol for the space before a word."""

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_UNSPACED = re.compile(
    "CJK|HIRAGANA|(HALFWIDTH )?KATAKANA|BOPOMOFO|YI |TANGUT|NUSHU|KHITAN|THAI|LAO|KHMER|MYANMAR|TIBETAN|(NEW )?TAI |"
    "AHOM|JAVANESE|BALINESE|BATAK|BUGINESE"
)
"""Matches the Unicode names of letters in scripts without spaces between words."""
_LATIN_1_SIGNS, _THREE_BYTES = 0xC2, 0xE0
"""UTF-8 lead bytes: that of U+0080 to U+00BF, and the lowest one of sequences of three bytes or more."""


@dataclass(frozen=True)
class Vocabulary:
    """The size of a vocabulary and the ids of its special tokens, by role."""

    size: int
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    eod: int


class Tokenizer:
    """A SentencePiece tokenizer. Special tokens spelled out in a text are encoded as plain text.

    vocabulary: its size and special tokens.
    sha256: checksum of the model file, recorded by datasets and runs.
    """

    file_name = "spiece.model"
    """Name of the tokenizer's file in a dataset or run."""
    strips_sentences = False
    """True if sentences are stripped before encoding, because surrounding white space would become tokens."""

    def __init__(self, model: bytes, *, name: str):
        """Raises `DataError` with `name` if `model` is not a SentencePiece model or lacks a special token."""
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
        """The ids of a text, without special tokens."""
        ids: list[int] = self._processor.encode(sentence, out_type=int)
        return ids

    def encode_batch(self, sentences: Sequence[str]) -> list[list[int]]:
        """Encode every sentence, in this thread; SentencePiece's batch method starts a thread per call."""
        return [self.encode(sentence) for sentence in sentences]

    def encode_with_spans(self, text: str) -> tuple[list[int], np.ndarray]:
        """The ids of a text, and the characters that each one covers: [start, stop) in `text` [T, 2].

        A token may include the white space before a word.
        """
        from sentencepiece import sentencepiece_pb2

        found = sentencepiece_pb2.SentencePieceText.FromString(
            self._processor.encode(text, out_type="serialized_proto")
        )
        # Offsets count bytes of UTF-8; a character begins at every byte that continues none.
        starts = (np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80
        characters = np.concatenate([[0], np.cumsum(starts)])
        spans = np.array([(piece.begin, piece.end) for piece in found.pieces], np.int64).reshape(-1, 2)
        return [piece.id for piece in found.pieces], characters[spans]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens except the unknown one."""
        text: str = self._processor.decode([int(i) for i in ids])
        return text

    def word_starts(self) -> np.ndarray:
        """Mask of the tokens that begin a word, by id.

        These are special tokens, pieces with a word boundary, and everything except letters of scripts with spaces
        between words (digits, punctuation, symbols, ideographs). A piece that begins with a combining mark, such as a
        vowel sign, continues the previous character. For characters encoded as bytes only the first byte is known, so
        all characters of three bytes or more begin a word: correct for ideographs, kana, Thai and symbols, but letters
        of Korean and Hindi become words.

        In XLNet digits continue a word. ALBERT has the same rule for lower-case English, but its code begins a word at
        every accented or capital letter, which its paper does not intend.
        """
        return np.array([_begins_word(self.id_to_token(i)) for i in range(self.vocabulary.size)])

    def id_to_token(self, token: int) -> str:
        """The piece of a token id, special or not."""
        piece: str = self._processor.id_to_piece(int(token))
        return piece


def _with_controls(model: bytes, symbols: Iterable[int]) -> bytes:
    """Mark pieces of a SentencePiece model as control symbols, which are never matched in a text."""
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
    """The position of the first lone surrogate, which is invalid Unicode; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def check_text(text: object, where: str) -> None:
    """Raise `ConfigError` if `text` is not a string, and `DataError` if it is not valid Unicode."""
    if not isinstance(text, str):
        raise ConfigError(f"{where}: expected a string, got a {type(text).__name__}")
    if (place := lone_surrogate(text)) is not None:
        raise DataError(f"{where}: invalid Unicode: a lone surrogate at character {place}")


def find_special_tokens(pieces: Mapping[str, int], known: Mapping[str, int], name: str) -> Vocabulary:
    """Find the special tokens of a vocabulary. known: ids by role, as a fallback. Raises `DataError` if one is missing.

    ALBERT's and BERT's vocabularies have no end-of-document token, so `sep` is used for it. A piece may occur twice in
    a vocabulary (a special token that was also learned), so the size is computed from the highest id.
    """
    found, missing = dict(known), []
    for role, spellings in SPECIAL_TOKENS.items():
        spelt = next((spelling for spelling in spellings if spelling in pieces), None)
        if spelt is not None:
            found[role] = pieces[spelt]
        elif role not in found and role != "eod":
            missing.append(f"{role} ({' or '.join(spellings)})")
    if missing:
        raise DataError(f"{name}: the vocabulary has no {', '.join(missing)}; train the tokenizer with these tokens")
    return Vocabulary(size=max(pieces.values()) + 1, **{"eod": found["sep"], **found})
