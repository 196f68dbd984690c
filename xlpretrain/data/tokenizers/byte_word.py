"""Byte and word vocabularies, as used for published results on enwik8 and WikiText-103. Torch-free."""

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
"""The word for a line end in the WikiText literature."""

_SPECIAL = [spellings[0] for spellings in SPECIAL_TOKENS.values()]
_WORD = re.compile(r"\n|[^ \n]+")


class _Plain(Tokenizer):
    """A tokenizer with a JSON file in our format: {"type": ..., ...}."""

    file_name = "vocabulary.json"
    kind = ""

    def __init__(self, model: bytes, *, name: str):
        """Raises `DataError` with `name` if `model` is not such a file."""
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            self._pieces = self._read(json.loads(model))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{name}: not a vocabulary file of xlpretrain ({error})") from None
        self.vocabulary = Vocabulary(size=len(self._pieces), **{role: i for i, role in enumerate(SPECIAL_TOKENS)})

    def _read(self, data: Any) -> list[str]:
        """The pieces, with special tokens first."""
        raise NotImplementedError

    def word_starts(self) -> np.ndarray:
        """Mask of the tokens that begin a word, by id: all of them."""
        return np.ones(self.vocabulary.size, bool)

    def id_to_token(self, token: int) -> str:
        """The piece of a token id, special or not."""
        return self._pieces[int(token)]


class ByteTokenizer(_Plain):
    """Every UTF-8 byte is a token. No normalization, no unknown tokens."""

    kind = "bytes"

    @classmethod
    def make(cls) -> Self:
        """Create the byte tokenizer."""
        return cls(json.dumps({"type": cls.kind}).encode(), name=cls.kind)

    def _read(self, data: Any) -> list[str]:
        return [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]

    def encode(self, sentence: str) -> list[int]:
        """The ids of a text, without special tokens."""
        return [byte + len(_SPECIAL) for byte in sentence.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return bytes(int(i) - len(_SPECIAL) for i in ids if i >= len(_SPECIAL)).decode(errors="replace")


class WordTokenizer(_Plain):
    """Every word between spaces and every line end is a token. Rare words are unknown."""

    kind = "word"

    @classmethod
    def make(cls, texts: Iterable[str], *, vocab_size: int) -> Self:
        """Create a vocabulary of the most frequent words, at most `vocab_size` including special tokens."""
        counts = Counter(word for text in texts for word in _WORD.findall(text))
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - len(_SPECIAL)]
        if not frequent:
            raise DataError("the training documents contain no text to train a tokenizer on; add text")
        return cls(json.dumps({"type": cls.kind, "words": frequent}).encode(), name=cls.kind)

    def _read(self, data: Any) -> list[str]:
        words = [str(word) for word in data["words"]]
        self._ids = {word: i for i, word in enumerate(words, start=len(_SPECIAL))}
        self._ids.setdefault("<unk>", _SPECIAL.index("<unk>"))  # WikiText contains <unk> as text
        return [*_SPECIAL, *(END_OF_LINE if word == "\n" else word for word in words)]

    def encode(self, sentence: str) -> list[int]:
        """The ids of a text, without special tokens."""
        unknown = self.vocabulary.unk
        return [self._ids.get(word, unknown) for word in _WORD.findall(sentence)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens except the unknown one."""
        words = [self.id_to_token(i) for i in ids if i >= len(_SPECIAL) or i == self.vocabulary.unk]
        return re.sub(" ?<eos> ?", "\n", " ".join(words))


TOKENIZER_TYPES: dict[str, type[_Plain]] = {kind.kind: kind for kind in (ByteTokenizer, WordTokenizer)}
