"""Reads the tokenizer of a transformers folder, with the same ids as `AutoTokenizer`. Torch-free.

`spiece.model` does not determine lower-casing, accents, quotes or numbers before a comma. These depend on
`tokenizer.json`, or on the tokenizer class and the options in `tokenizer_config.json`; and versions 4 and 5 of
transformers differ: 4 uses a `tokenizer.json` unchanged, 5 uses only its vocabulary and rebuilds the rest. Here the
result is always a single, self-contained `tokenizer.json`. Special tokens spelled out in a text are plain text, as with
`AutoTokenizer.from_pretrained(folder, split_special_tokens=True)`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from xlpretrain.data.tokenizers.base import WORD_BOUNDARY, Tokenizer
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST, CLS_LAST
from xlpretrain.errors import DataError
from xlpretrain.hub.tokenizers.export import AS_BROUGHT, post_processor, same_ids, symbol

_Json = dict[str, Any]

_CLASSES = {"albert": "AlbertTokenizer", "xlnet": "XLNetTokenizer", "bert": "BertTokenizer"}
"""Default tokenizer class by model_type."""
_PLAIN = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes that use `tokenizer.json` unchanged."""
_LAYOUTS = {"AlbertTokenizer": CLS_FIRST, "XLNetTokenizer": CLS_LAST}
_SYMBOLS: dict[str, _Json] = {  # the defaults of the classes
    "AlbertTokenizer": {
        **{"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"},
        **{"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    },
    "XLNetTokenizer": {
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        **{"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"},
        "additional_special_tokens": ["<eop>", "<eod>"],
    },
}


@dataclass(frozen=True)
class _Reader:
    """The tokenizer class of a folder. kind: its name, without Fast. version: of transformers, 4 or 5."""

    folder: Path
    kind: str | None
    version: int
    options: _Json

    @classmethod
    def of(cls, folder: Path, model_type: str) -> _Reader:
        """Find the class that reads a folder. Raises `DataError` if a file cannot be used."""
        config, options = _read(folder / "config.json"), _read(folder / "tokenizer_config.json")
        named = options.get("tokenizer_class") or config.get("tokenizer_class")
        if options.get("auto_map"):
            named = f"{named or 'AutoTokenizer'} with custom code"
        written = str(config.get("transformers_version") or "4").partition(".")[0]
        is_new = "backend" in options if options else written.isdecimal() and int(written) >= 5
        kind = str(named).removesuffix("Fast") if named else _CLASSES.get(model_type)
        return cls(folder, kind, 5 if is_new else 4, options)

    def option(self, name: str, default: bool) -> bool:
        """The value of an option in `tokenizer_config.json`."""
        return bool(self.options.get(name, default))

    def __str__(self) -> str:
        chosen = [f"{name}={self.options[name]}" for name in _OPTIONS if name in self.options]
        return f"{self.kind} of transformers {self.version}" + (f" ({', '.join(chosen)})" if chosen else "")


_OPTIONS = ("do_lower_case", "keep_accents", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")


def read_folder(folder: Path, model_type: str) -> tuple[Tokenizer, list[str]] | None:
    """Read the tokenizer of a folder; returns it and notes for the user, or None if there is no tokenizer file.

    model_type: from the folder's config.json.

    Raises:
        DataError: the files cannot be used, or how `AutoTokenizer` reads them is not known.
    """
    spiece, file = folder / Tokenizer.file_name, folder / HuggingFaceTokenizer.file_name
    words = folder / "vocab.txt"
    if not any(path.is_file() for path in (spiece, file, words)):
        return None
    reader = _Reader.of(folder, model_type)
    if not spiece.is_file() and not file.is_file():
        return _made(_from_words(reader, words), folder), [f"tokenizer: {words.name} as {reader} reads it"]
    if not file.is_file():
        if reader.kind is None or reader.kind in _PLAIN:
            return load_tokenizer(spiece), []
        if reader.kind == "BertTokenizer":
            return load_tokenizer(spiece), [f"tokenizer: {spiece.name}, unchanged; {reader} does not read this file"]
        content = _from_spiece(reader, load_tokenizer(spiece))
        return _made(content, folder), [f"tokenizer: {spiece.name} as {reader} reads it"]
    content = _read(file)
    if spiece.is_file() and same_ids(content, load_tokenizer(spiece)):
        return load_tokenizer(spiece), []
    brought = folder / AS_BROUGHT
    if brought.is_file() and {**_read(brought), "post_processor": content.get("post_processor")} == content:
        return HuggingFaceTokenizer(brought.read_bytes(), name=str(brought)), []
    changed = _from_json(reader, content)
    if changed == content:
        return load_tokenizer(file), []
    return _made(changed, folder), [f"tokenizer: {file.name} as {reader} reads it"]


def _made(content: _Json, folder: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(json.dumps(content, ensure_ascii=False).encode(), name=str(folder))


def _read(path: Path) -> _Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object, got {type(found).__name__}")
    return found


def _from_spiece(reader: _Reader, spiece: Tokenizer) -> _Json:
    """The tokenizer that the class builds from a SentencePiece model."""
    if reader.kind not in _SYMBOLS:
        raise _unknown(reader, Tokenizer.file_name)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(spiece.model)
    trainer, charsmap, pieces = model.trainer_spec, model.normalizer_spec.precompiled_charsmap, model.pieces
    if trainer.model_type != trainer.UNIGRAM:
        raise DataError(f"{reader.folder / Tokenizer.file_name}: not a unigram model, which {reader} requires")
    content: _Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            symbol(i, piece.piece, special=piece.type == piece.CONTROL)
            for i, piece in enumerate(pieces)
            if piece.type in (piece.CONTROL, piece.USER_DEFINED)
        ],
        "normalizer": _normalizer(reader, base64.b64encode(charsmap).decode()),
        "pre_tokenizer": _pre_tokenizer(reader),
        "post_processor": post_processor(spiece, _LAYOUTS[str(reader.kind)]),
        "decoder": _metaspace(reader),
        "model": {
            "type": "Unigram",
            "unk_id": 1 if reader.version == 5 and reader.kind == "AlbertTokenizer" else trainer.unk_id,
            "vocab": [[piece.piece, piece.score - _penalty(reader, piece.piece)] for piece in pieces],
            "byte_fallback": False,
        },
    }
    return _with_symbols(reader, content)


def _penalty(reader: _Reader, piece: str) -> float:
    """Score penalty in version 4 for a piece of a number and a comma, so that they become two pieces."""
    return 100.0 if reader.version == 4 and len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit() else 0.0


def _with_symbols(reader: _Reader, content: _Json) -> _Json:
    """Add the tokens of the options. In version 4, special tokens are those with a role in the options."""
    if reader.version == 5:
        return content
    ids = {piece: i for i, (piece, _) in enumerate(content["model"]["vocab"])}
    added = {token["content"]: token for token in content["added_tokens"]}
    for number, token in (reader.options.get("added_tokens_decoder") or {}).items():
        added[token["content"]] = {**symbol(int(number), token["content"], special=False), **token}
    named = {**_SYMBOLS[str(reader.kind)], **_read(reader.folder / "special_tokens_map.json"), **reader.options}
    roles = [named[name] for name in named if name.endswith("_token")] + (named.get("additional_special_tokens") or [])
    special = {role["content"] if isinstance(role, dict) else role for role in roles}
    for text in special & ids.keys() - added.keys():
        added[text] = symbol(ids[text], text, special=True)
    extra = {text: token["id"] for text, token in added.items() if text not in ids}
    extra |= {text: number for text, number in _read(reader.folder / "added_tokens.json").items() if text not in added}
    if any(added[text]["id"] != ids[text] for text in added.keys() & ids.keys()) or sorted(extra.values()) != list(
        range(len(ids), len(ids) + len(extra))
    ):
        raise DataError(
            f"{reader.folder / 'tokenizer_config.json'}: the ids in added_tokens_decoder do not match the vocabulary;"
            " save the tokenizer again"
        )
    return {
        **content,
        "added_tokens": [
            {**token, "special": token["special"] or text in special}
            for text, token in sorted(added.items(), key=lambda item: int(item[1]["id"]))
        ],
    }


def _from_json(reader: _Reader, content: _Json) -> _Json:
    """The tokenizer that the class builds from a `tokenizer.json`."""
    if reader.kind is None or reader.kind in _PLAIN:
        return content
    if reader.kind == "BertTokenizer":
        return _bert(reader, content)
    if reader.kind not in _SYMBOLS:
        raise _unknown(reader, HuggingFaceTokenizer.file_name)
    if reader.version == 4:
        return _with_symbols(reader, content)
    steps = (content.get("normalizer") or {}).get("normalizers") or [content.get("normalizer") or {}]
    charsmap = next((step.get("precompiled_charsmap") for step in steps if step.get("type") == "Precompiled"), None)
    return {**content, "normalizer": _normalizer(reader, charsmap), "pre_tokenizer": _pre_tokenizer(reader)}


def _bert(reader: _Reader, content: _Json) -> _Json:
    """Apply the options to a BERT tokenizer; they take precedence over the file."""
    options = {
        "lowercase": reader.option("do_lower_case", True),
        "strip_accents": reader.options.get("strip_accents"),
        "handle_chinese_chars": reader.option("tokenize_chinese_chars", True),
    }
    normalizer = content.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        raise DataError(
            f"{reader.folder / HuggingFaceTokenizer.file_name}: unsupported normalizer {normalizer.get('type')} for"
            f" {reader}, expected BertNormalizer; pass the file (--tokenizer) if the model was trained with it"
        )
    if reader.version == 4:
        return {**content, "normalizer": {**normalizer, **options}}
    made = {"type": "BertNormalizer", "clean_text": True, **options}
    return {**content, "normalizer": made, "pre_tokenizer": {"type": "BertPreTokenizer"}}


def _from_words(reader: _Reader, path: Path) -> _Json:
    """The tokenizer that the class builds from a WordPiece vocabulary, with one piece per line."""
    if reader.kind != "BertTokenizer":
        raise _unknown(reader, path.name)
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    vocabulary = {line.rstrip("\r"): i for i, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    symbols = [text for text in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if text in vocabulary]
    content = _bert(
        reader,
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [symbol(vocabulary[text], text) for text in symbols],
            "normalizer": {"type": "BertNormalizer", "clean_text": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": None,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": vocabulary,
            },
        },
    )
    return {**content, "post_processor": post_processor(_made(content, path), CLS_FIRST)}


def _unknown(reader: _Reader, name: str) -> DataError:
    return DataError(
        f"{reader.folder}: {name} with {reader} is not supported, since its ids may differ from the model's training;"
        f" supported are {', '.join(_CLASSES.values())}, and a tokenizer.json without a class. Pass the file"
        " (--tokenizer) if the model was trained with it unchanged"
    )


def _normalizer(reader: _Reader, charsmap: str | None) -> _Json:
    ignored = reader.version == 5 and reader.kind == "XLNetTokenizer"  # the class ignores the option
    accents = reader.option("keep_accents", False) and not ignored
    steps: list[_Json] = [_replace("``", '"'), _replace("''", '"')]
    steps += [] if accents else [{"type": "NFKD"}, {"type": "StripAccents"}]
    steps += [{"type": "Lowercase"}] if reader.option("do_lower_case", reader.kind == "AlbertTokenizer") else []
    steps += [{"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []
    steps += [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}] if reader.version == 4 else []
    return {"type": "Sequence", "normalizers": steps}


def _replace(text: str, content: str) -> _Json:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def _pre_tokenizer(reader: _Reader) -> _Json:
    if reader.version == 4:
        return _metaspace(reader)
    return {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _metaspace(reader)]}


def _metaspace(reader: _Reader) -> _Json:
    chosen = reader.version == 5 and reader.kind == "AlbertTokenizer"  # others ignore the option
    scheme = "always" if not chosen or reader.option("add_prefix_space", True) else "never"
    return {"type": "Metaspace", "replacement": WORD_BOUNDARY, "prepend_scheme": scheme, "split": True}
