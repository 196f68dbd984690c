"""Opening a tokenizer of any type, by its file. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path

from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.byte_word import TOKENIZER_TYPES
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.errors import DataError


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open the tokenizer in a file, or of a folder: a SentencePiece model, or a `.json`.

    Raises `DataError`: it cannot be used, or the folder holds a third-party model, whose files do not tell by
    themselves how that reads text.
    """
    path = Path(path)
    if path.is_dir():
        _refuse_models_of_others(path)
        spiece = path / Tokenizer.file_name  # a tokenizer.json beside it is another form of the same
        path = spiece if spiece.is_file() else find_tokenizer_file(path)
    try:
        model = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such tokenizer") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return (_json_class(model) if path.suffix == ".json" else Tokenizer)(model, name=str(path))


def find_tokenizer_file(folder: Path) -> Path:
    """The file of the tokenizer of a dataset or a run in its folder `tokenizer`, whether or not it exists."""
    others = (folder / name for name in ("tokenizer.json", "vocabulary.json"))
    return next((path for path in others if path.is_file()), folder / Tokenizer.file_name)


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
            f"{folder}: a model of others, which may read text otherwise than its {spiece.name} alone does; make a run"
            f" of it (`xlpretrain import {folder} --name NAME`) and name the tokenizer of that (runs/NAME/tokenizer)"
        )


def _json_class(model: bytes) -> type[Tokenizer]:
    try:
        kind = json.loads(model).get("type")
    except (ValueError, AttributeError):
        kind = None
    return TOKENIZER_TYPES.get(str(kind), HuggingFaceTokenizer)
