"""A SentencePiece model as a `tokenizer.json` that gives the same ids for any text. Torch-free.

The stock conversion of transformers does not: see `_normalizer` and `_vocabulary`. The file is JSON that the library
`tokenizers` reads; writing it takes no library.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from sentencepiece import sentencepiece_model_pb2

from xlpretrain.data.tokenizers.base import WORD_BOUNDARY, Tokenizer
from xlpretrain.errors import DataError
from xlpretrain.hub.tokenizers.normalization_rules import characters, charsmap_joint_pattern

Template = Literal["plain", "xlnet", "bert"]
"""The special tokens around a text or a pair: none; A <sep> B <sep> <cls>; [CLS] A [SEP] B [SEP]."""

_APART, _BETWEEN, _STRANGE = "\ufff0", "\ufff1", "\ufff2"
"""Code points that no text has (unassigned), and that are no part of another's grapheme."""
_FIRST_STAND_IN = 0xF0000  # for private use
_Json = dict[str, Any]


def tokenizer_json(tokenizer: Tokenizer, template: Template) -> _Json:
    """The content of `tokenizer.json`. Raises `DataError` if the model does what no such file can say."""
    if tokenizer.file_name != Tokenizer.file_name:
        raise DataError("a vocabulary of bytes or words is none that transformers has; no tokenizer.json for it")
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.model)
    _check(model)
    pieces = model.pieces
    stand_ins = {
        first: chr(_FIRST_STAND_IN + number)
        for number, first in enumerate(sorted({p.piece[0] for p in pieces if _is_symbol(p)}))
    }
    strange = [_APART, _BETWEEN, *stand_ins.values()]
    if any(character in piece.piece for piece in pieces for character in [*strange, _STRANGE]):
        raise DataError("the vocabulary has pieces with code points that are set aside here (U+FFF0, U+F0000 on)")
    normalizers = [_replace(characters(strange), _STRANGE), *_normalizer(model.normalizer_spec)]
    normalizers += [_replace(characters([first]), stand_in) for first, stand_in in stand_ins.items()]
    if model.normalizer_spec.add_dummy_prefix:
        normalizers.append({"type": "Prepend", "prepend": WORD_BOUNDARY})
    decoders: list[_Json] = [
        {"type": "Replace", "pattern": {"String": stand_in}, "content": first} for first, stand_in in stand_ins.items()
    ]
    if model.trainer_spec.byte_fallback:
        decoders.append({"type": "ByteFallback"})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [symbol(i, p.piece) for i, p in enumerate(pieces) if _is_symbol(p)],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": post_processor(tokenizer, template),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                *decoders,
                {"type": "Metaspace", "replacement": WORD_BOUNDARY, "prepend_scheme": "always", "split": False},
            ],
        },
        "model": {
            "type": "Unigram",
            "unk_id": tokenizer.vocabulary.unk,
            "vocab": list(_vocabulary(pieces, stand_ins)),
            "byte_fallback": bool(model.trainer_spec.byte_fallback),
        },
    }


def tokenizer_config(tokenizer: Tokenizer, template: Template, *, max_length: int | None) -> _Json:
    """The content of `tokenizer_config.json`.

    Special symbols that a text spells out are text, as they are here (`split_special_tokens`).
    """
    vocabulary = tokenizer.vocabulary
    roles = ["pad", "unk", *(["cls", "sep", "mask"] if template != "plain" else [])]
    settings: _Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "padding_side": "right" if template == "bert" else "left",
        "model_input_names": ["input_ids", *(["token_type_ids"] if template != "plain" else []), "attention_mask"],
        **{f"{role}_token": tokenizer.id_to_token(getattr(vocabulary, role)) for role in roles},
        "eos_token": tokenizer.id_to_token(vocabulary.eod if template == "plain" else vocabulary.sep),
    }
    return settings if max_length is None else {**settings, "model_max_length": max_length}


def _check(model: Any) -> None:
    trainer, rules = model.trainer_spec, model.normalizer_spec
    for wrong, what in (
        (trainer.model_type != trainer.UNIGRAM, "is not a unigram model"),
        (trainer.treat_whitespace_as_suffix, "puts the space after the word"),
        (not rules.escape_whitespaces or not rules.remove_extra_whitespaces, "keeps extra spaces"),
        (any(p.type == p.UNUSED for p in model.pieces), "has pieces that are switched off"),
    ):
        if wrong:
            raise DataError(f"the tokenizer {what}, which transformers cannot be made to do; no tokenizer.json for it")


def _is_symbol(piece: Any) -> bool:
    return piece.type in (piece.CONTROL, piece.UNKNOWN)


def _normalizer(rules: Any) -> Iterator[_Json]:
    """SentencePiece's normalization, step by step.

    `Precompiled` alone errs: of a grapheme of less than 6 bytes it keeps what its first character becomes and drops the
    rest, and of a longer one it takes character by character, so that it never composes. Here it sees single characters
    (`_BETWEEN` stands before each), and the canonical composition does what rules of several characters do; where no
    rule takes them together, `_APART` keeps them from it. ASCII begins no grapheme with what comes before.
    """
    if rules.precompiled_charsmap:
        inside = charsmap_joint_pattern(rules.precompiled_charsmap)
        yield _replace(rf"(?!\A)(?=[^\x00-\x7f])(?!{inside})", _APART)
        yield {"type": "NFC"}
        yield _replace(rf"(?<!\A|{_APART})(?=[^\x00-\x7f{_APART}])", _BETWEEN)
        charsmap = base64.b64encode(rules.precompiled_charsmap).decode()
        yield {"type": "Precompiled", "precompiled_charsmap": charsmap}
        yield _replace(_BETWEEN, "")
        yield {"type": "NFC"}
        yield _replace(_APART, "")
    yield _replace(" {2,}", " ")
    yield _replace(r"\A ", "")
    yield _replace(" ", WORD_BOUNDARY)
    yield _replace(rf"{WORD_BOUNDARY}+\z", "")


def _vocabulary(pieces: Sequence[Any], stand_ins: dict[str, str]) -> Iterator[tuple[str, float]]:
    """Pieces and scores, in the order of ids.

    Special symbols must never be found in a text: in all other pieces, and in the text, stand-ins replace the
    characters that symbols begin with. A user-defined piece always is, the longest one:
    its score is beyond all others.
    """
    for piece in pieces:
        if _is_symbol(piece):
            yield piece.piece, 0.0
            continue
        text = "".join(stand_ins.get(character, character) for character in piece.piece)
        own = piece.type == piece.USER_DEFINED
        yield text, 1000.0 * len(piece.piece) - 500.0 if own else piece.score


def symbol(token: int, piece: str, *, special: bool = True) -> _Json:
    """An added token of `tokenizer.json`: found in a text before all else, if it is special only where asked for."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": piece, **flags, "special": special}


def same_ids(content: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """True if a `tokenizer.json` equals the one exported for a SentencePiece model, except for templates."""
    try:
        ours = json.loads(json.dumps(tokenizer_json(tokenizer, "plain")))
    except DataError:
        return False
    return all(content.get(key) == ours[key] for key in ("normalizer", "pre_tokenizer", "model"))


def post_processor(tokenizer: Tokenizer, template: Template) -> _Json | None:
    """Segments are those of pretraining; XLNet's <cls> has one of its own."""
    if template == "plain":
        return None
    vocabulary = tokenizer.vocabulary
    first, second = _sequence("A", 0), _sequence("B", 1)
    cls, sep = tokenizer.id_to_token(vocabulary.cls), tokenizer.id_to_token(vocabulary.sep)
    if template == "xlnet":
        single = [first, _special(sep, 0), _special(cls, 2)]
        pair = [first, _special(sep, 0), second, _special(sep, 1), _special(cls, 2)]
    else:
        single = [_special(cls, 0), first, _special(sep, 0)]
        pair = [*single, second, _special(sep, 1)]
    tokens = {
        piece: {"id": piece, "ids": [token], "tokens": [piece]}
        for piece, token in ((cls, vocabulary.cls), (sep, vocabulary.sep))
    }
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def _sequence(name: str, segment: int) -> _Json:
    return {"Sequence": {"id": name, "type_id": segment}}


def _special(piece: str, segment: int) -> _Json:
    return {"SpecialToken": {"id": piece, "type_id": segment}}


def _replace(pattern: str, content: str) -> _Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
