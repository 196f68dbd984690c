"""Text normalization: SentencePiece's rules, optionally with case folding and accent stripping.

The rules are stored in the SentencePiece model, so the model file alone encodes raw text correctly.
"""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sentencepiece

from data_pipelines.tokenizing.config import TokenizerConfig

_HANGUL = range(0xAC00, 0xD7A4)


@contextmanager
def normalization_arguments(config: TokenizerConfig) -> Iterator[dict[str, Any]]:
    """The trainer arguments that select the rules: the name of a built-in set, or a file."""
    name = _rule_name(config)
    if not config.strip_accents and (not config.lowercase or name.endswith("_cf")):
        yield {"normalization_rule_name": name}
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.tsv"
        rules = sorted(make_rules(config).items())
        path.write_text("".join(f"{_hexadecimal(text)}\t{_hexadecimal(result)}\n" for text, result in rules))
        yield {"normalization_rule_tsv": str(path)}


def make_rules(config: TokenizerConfig) -> dict[str, str]:
    """The replacement of every character that changes, and of decomposed Hangul.

    Accents are combining marks (combining class other than 0) of the canonical decomposition, as in the original BERT
    and ALBERT. Unlike there, the rest is composed again; the originals leave Korean decomposed.
    """
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=_rule_name(config), add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
    )
    characters = [c for c in map(chr, range(1, 0x110000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    rules = {}
    for character, normal in zip(characters, normalizer.normalize(characters), strict=True):
        result = normal.casefold() if config.lowercase else normal
        result = _strip_accents(result) if config.strip_accents else result
        if result != character:
            rules[character] = result
    if config.strip_accents:
        rules.update({unicodedata.normalize("NFD", chr(code)): chr(code) for code in _HANGUL})
    return rules


def _rule_name(config: TokenizerConfig) -> str:
    name = config.normalization
    folds = config.lowercase and name not in ("identity", "nmt_nfkc_cf", "nfkc_cf")
    return f"{name}_cf" if folds else name


def _strip_accents(text: str) -> str:
    kept = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", kept)


def _hexadecimal(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)
