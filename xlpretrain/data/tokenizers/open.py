"""Opens a tokenizer of any type, by its file. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.byte_word import TOKENIZER_TYPES
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.errors import DataError

_CLASSES: tuple[type[Tokenizer], ...] = (Tokenizer, HuggingFaceTokenizer, *TOKENIZER_TYPES.values())
TOKENIZER_FILES = tuple(dict.fromkeys(kind.file_name for kind in _CLASSES))
"""File names of tokenizers, SentencePiece's first."""


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a tokenizer from a file or folder: a SentencePiece model or a `.json`.

    Raises `DataError` if it cannot be used, or if the folder is a third-party model, whose tokenizer files alone do not
    determine the encoding.
    """
    path = Path(path)
    if path.is_dir():
        _refuse_models_of_others(path)
        spiece = path / Tokenizer.file_name  # a tokenizer.json beside it is the same tokenizer
        path = spiece if spiece.is_file() else find_tokenizer_file(path)
    try:
        model = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such tokenizer") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return (_json_class(model) if path.suffix == ".json" else Tokenizer)(model, name=str(path))


def find_tokenizer_file(folder: Path) -> Path:
    """The tokenizer's file in a folder of a dataset or run. May not exist."""
    paths = [folder / name for name in TOKENIZER_FILES]
    return next((path for path in paths[1:] if path.is_file()), paths[0])


def _refuse_models_of_others(folder: Path) -> None:
    config, spiece = folder / "config.json", folder / Tokenizer.file_name
    if not config.is_file() or not spiece.is_file():
        return
    try:
        is_ours = bool(json.loads(config.read_bytes()).get("xlpretrain"))
    except (OSError, ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise DataError(
            f"{folder}: a third-party model, which may not encode text like its {spiece.name} alone; import it"
            f" (`xlpretrain import {folder} --name NAME`) and use the tokenizer of that run (runs/NAME/tokenizer)"
        )


def _json_class(model: bytes) -> type[Tokenizer]:
    try:
        kind = json.loads(model).get("type")
    except (ValueError, AttributeError):
        kind = None
    return TOKENIZER_TYPES.get(str(kind), HuggingFaceTokenizer)
