"""Tokenizers of Hugging Face folders: a `tokenizer.json`, run by the library `tokenizers`. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from xlpretrain.data.tokenizers.base import Tokenizer, find_special_tokens
from xlpretrain.errors import DataError

_CONTINUES = "##"


class HuggingFaceTokenizer(Tokenizer):
    """Read from a `tokenizer.json` (WordPiece as BERT's, or Unigram as XLNet's and ALBERT's), of which only
    normalization, words and pieces are used."""

    file_name = "tokenizer.json"
    strips_sentences = True

    def __init__(self, model: bytes, *, name: str):
        """Raises `DataError` if `model` is no such tokenizer or lacks a special symbol."""
        try:
            import tokenizers
        except ImportError:
            raise DataError(f"{name}: needs the package tokenizers: pip install 'xlpretrain[wordpiece]'") from None
        try:
            kind = json.loads(model)["model"]["type"]
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # the library raises no narrower one
            raise DataError(f"{name}: not a tokenizer.json ({error})") from None
        if kind not in ("WordPiece", "Unigram"):
            raise DataError(f"{name}: its model is {kind}; of tokenizer.json files only WordPiece and Unigram will do")
        self._is_unigram = kind == "Unigram"
        self._tokenizer.encode_special_tokens = True  # those that a text spells out are text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocabulary = find_special_tokens(self._tokenizer.get_vocab(), {}, name)

    def encode(self, sentence: str) -> list[int]:
        """The ids of a text, without special symbols: those of `AutoTokenizer` with `split_special_tokens`."""
        ids: list[int] = self._tokenizer.encode(sentence, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special symbols are left out."""
        text: str = self._tokenizer.decode([int(i) for i in ids])
        return text

    def word_starts(self) -> np.ndarray:
        """Mask of the tokens that begin a word, by id: all but continuations."""
        if self._is_unigram:
            return super().word_starts()
        return np.array([not self.id_to_token(i).startswith(_CONTINUES) for i in range(self.vocabulary.size)])

    def id_to_token(self, token: int) -> str:
        """The spelling of a token, special symbols included."""
        return self._tokenizer.id_to_token(int(token)) or ""
