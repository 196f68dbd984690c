"""Tokenizers in a Hugging Face `tokenizer.json`, through the library `tokenizers`. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from xlpretrain.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer, find_special_tokens
from xlpretrain.errors import DataError
from xlpretrain.extras import optional

_CONTINUES = "##"
_NO_TEXT = "no text has this"


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` with WordPiece (BERT) or Unigram (XLNet, ALBERT). Uses its normalization, pre-tokenization
    and pieces."""

    file_name = "tokenizer.json"
    strips_sentences = True

    def __init__(self, model: bytes, *, name: str):
        """Raises `DataError` if `model` is not such a tokenizer or lacks a special token."""
        with optional("tokenizers", name):
            import tokenizers

        try:
            content = json.loads(model)
            kind = content["model"]["type"]
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
        except Exception as error:  # the library's own class
            raise DataError(f"{name}: not a tokenizer.json ({error})") from None
        if kind not in ("WordPiece", "Unigram"):
            raise DataError(f"{name}: unsupported model {kind}; expected a tokenizer.json with WordPiece or Unigram")
        self._is_unigram = kind == "Unigram"
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocabulary = find_special_tokens(self._tokenizer.get_vocab(), {}, name)
        ids = asdict(self.vocabulary)
        symbols = {self.id_to_token(ids[role]) for role in SPECIAL_TOKENS}
        self._encoder = tokenizers.Tokenizer.from_str(json.dumps(_without_spellings(content, symbols)))
        self._encoder.encode_special_tokens = True  # spelled out in a text they are text
        self._encoder.no_truncation()
        self._encoder.no_padding()

    def encode(self, sentence: str) -> list[int]:
        """The ids of a text, without special tokens, like `AutoTokenizer` with `split_special_tokens`.

        (That still finds a special token spelled out in a text if the model itself has it as a piece.)
        """
        ids: list[int] = self._encoder.encode(sentence, add_special_tokens=False).ids
        return ids

    def encode_with_spans(self, text: str) -> tuple[list[int], np.ndarray]:
        """The ids of a text, and the characters that each one covers: [start, stop) in `text` [T, 2]."""
        found = self._encoder.encode(text, add_special_tokens=False)
        return list(found.ids), np.array(found.offsets, np.int64).reshape(-1, 2)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        text: str = self._tokenizer.decode([int(i) for i in ids])
        return text

    def word_starts(self) -> np.ndarray:
        """Mask of the tokens that begin a word, by id: all except continuations."""
        if self._is_unigram:
            return super().word_starts()
        return np.array([not self.id_to_token(i).startswith(_CONTINUES) for i in range(self.vocabulary.size)])

    def id_to_token(self, token: int) -> str:
        """The piece of a token id, special or not."""
        return self._tokenizer.id_to_token(int(token)) or ""


def _without_spellings(content: dict[str, Any], symbols: set[str]) -> dict[str, Any]:
    """Rename special tokens (`symbols`, and those of the file) so that no text can contain them. Ids do not change."""
    added = content.get("added_tokens") or []
    symbols = symbols | {token["content"] for token in added if token.get("special")}

    def rename(piece: str) -> str:
        return f"\0{piece}\0{_NO_TEXT}" if piece in symbols else piece

    model = dict(content["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(piece): token for piece, token in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(piece), score] for piece, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = rename(model["unk_token"])
    own = {"normalized": False, "lstrip": False, "rstrip": False}
    added = [
        token | own | {"content": rename(token["content"])} if token["content"] in symbols else token for token in added
    ]
    return content | {"model": model, "added_tokens": added, "post_processor": None}
