"""Vocabularies of bytes and of words, as figures for enwik8 and WikiText-103 are told in. Torch-free."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from xlpretrain.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer, Vocabulary
from xlpretrain.errors import DataError

END_OF_LINE = "<eos>"
"""The spelling of the word for an end of line in the WikiText literature."""

_SPECIAL = [spellings[0] for spellings in SPECIAL_TOKENS.values()]
_WORD = re.compile(r"\n|[^ \n]+")


class _Plain(Tokenizer):
    """One whose file is JSON of ours: {"type": ..., ...}."""

    file_name = "vocabulary.json"
    kind = ""

    def __init__(self, model: bytes, *, name: str):
        """Raises `DataError` naming `name` if `model` is no such file."""
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            self._pieces = self._read(json.loads(model))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{name}: not a vocabulary of ours ({error})") from None
        self.vocabulary = Vocabulary(size=len(self._pieces), **{role: i for i, role in enumerate(SPECIAL_TOKENS)})

    def _read(self, data: Any) -> list[str]:
        """The pieces, special symbols first."""
        raise NotImplementedError

    def word_starts(self) -> np.ndarray:
        """Mask of the tokens that begin a word, by id: all do."""
        return np.ones(self.vocabulary.size, bool)

    def id_to_token(self, token: int) -> str:
        """The spelling of a token, special symbols included."""
        return self._pieces[int(token)]


class ByteTokenizer(_Plain):
    """Every byte of UTF-8 is a token; nothing is normalized, and nothing is unknown."""

    kind = "bytes"

    @classmethod
    def make(cls) -> Self:
        """The only one there is."""
        return cls(json.dumps({"type": cls.kind}).encode(), name=cls.kind)

    def _read(self, data: Any) -> list[str]:
        return [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]

    def encode(self, sentence: str) -> list[int]:
        """The ids of a text, without special symbols."""
        return [byte + len(_SPECIAL) for byte in sentence.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special symbols are left out."""
        return bytes(int(i) - len(_SPECIAL) for i in ids if i >= len(_SPECIAL)).decode(errors="replace")


class WordTokenizer(_Plain):
    """Every word between spaces is a token, and every end of a line; rare words are unknown."""

    kind = "word"

    @classmethod
    def make(cls, texts: Iterable[str], *, vocab_size: int) -> Self:
        """Make a vocabulary of the most frequent words, of at most `vocab_size` entries, special symbols included."""
        counts = Counter(word for text in texts for word in _WORD.findall(text))
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - len(_SPECIAL)]
        if not frequent:
            raise DataError("the training documents hold no text that a tokenizer could be trained on; add text")
        return cls(json.dumps({"type": cls.kind, "words": frequent}).encode(), name=cls.kind)

    def _read(self, data: Any) -> list[str]:
        words = [str(word) for word in data["words"]]
        self._ids = {word: i for i, word in enumerate(words, start=len(_SPECIAL))}
        self._ids.setdefault("<unk>", _SPECIAL.index("<unk>"))  # WikiText spells out what it left out
        return [*_SPECIAL, *(END_OF_LINE if word == "\n" else word for word in words)]

    def encode(self, sentence: str) -> list[int]:
        """The ids of a text, without special symbols."""
        unknown = self.vocabulary.unk
        return [self._ids.get(word, unknown) for word in _WORD.findall(sentence)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special symbols but the unknown are left out."""
        words = [self.id_to_token(i) for i in ids if i >= len(_SPECIAL) or i == self.vocabulary.unk]
        return re.sub(" ?<eos> ?", "\n", " ".join(words))


TOKENIZER_TYPES: dict[str, type[_Plain]] = {kind.kind: kind for kind in (ByteTokenizer, WordTokenizer)}
