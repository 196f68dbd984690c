"""Converts a SentencePiece model to a `tokenizer.json` that gives the same ids for any text. Torch-free.

The conversion in transformers does not: see `_normalizer` and `_vocabulary`. The file is JSON for the library
`tokenizers`, which is not needed to write it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from xlpretrain.data.tokenizers.base import WORD_BOUNDARY, Tokenizer
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.data.tokenizers.token_layout import CLS_FIRST, DOCUMENT, LayoutPart, TokenLayout
from xlpretrain.errors import DataError
from xlpretrain.extras import optional
from xlpretrain.hub.tokenizers.normalization_rules import characters, charsmap_joint_pattern

AS_BROUGHT = "tokenizer_as_brought.json"
"""The original of a third-party tokenizer, exported beside a `tokenizer.json` with a different layout."""

_APART, _BETWEEN, _STRANGE = "\ufff0", "\ufff1", "\ufff2"
"""Unassigned code points, which no text contains and which do not join graphemes."""
_FIRST_STAND_IN = 0xF0000  # a private use area
_MASK = chr(0x100000)  # private use as well
_Json = dict[str, Any]


def tokenizer_json(tokenizer: Tokenizer, layout: TokenLayout, *, complete: bool = False) -> _Json:
    """The content of `tokenizer.json`. complete: see `post_processor`.

    Raises `DataError` if the format does not support the model.
    """
    if tokenizer.file_name != Tokenizer.file_name:
        raise DataError("transformers does not support byte or word vocabularies; no tokenizer.json for it")
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.model)
    _check(model)
    pieces = model.pieces
    stand_ins = {
        first: chr(_FIRST_STAND_IN + number)
        for number, first in enumerate(sorted({p.piece[0] for p in pieces if _is_symbol(p)}))
    }
    mask = None if layout.is_plain else tokenizer.vocabulary.mask
    strange = [_APART, _BETWEEN, _MASK, *stand_ins.values()]
    if any(character in piece.piece for piece in pieces for character in [*strange, _STRANGE]):
        raise DataError("the vocabulary has pieces with code points reserved for the export (U+FFF0, U+F0000 on)")
    normalizers = [_replace(characters(strange), _STRANGE)]
    if mask is not None:
        normalizers.append({"type": "Replace", "pattern": {"String": pieces[mask].piece}, "content": _MASK})
    normalizers += _normalizer(model.normalizer_spec)
    normalizers += [_replace(characters([first]), stand_in) for first, stand_in in stand_ins.items()]
    if model.normalizer_spec.add_dummy_prefix:
        normalizers.append({"type": "Prepend", "prepend": WORD_BOUNDARY})
    if mask is not None:  # the space before a mask belongs to the masked word
        normalizers.append(_replace(f"{WORD_BOUNDARY}?{_MASK}", pieces[mask].piece))
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
        "post_processor": post_processor(tokenizer, layout, complete=complete),
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
            "vocab": list(_vocabulary(pieces, stand_ins, mask)),
            "byte_fallback": bool(model.trainer_spec.byte_fallback),
        },
    }


def tokenizer_config(tokenizer: Tokenizer, layout: TokenLayout, *, max_length: int | None) -> _Json:
    """The content of `tokenizer_config.json`.

    Special tokens spelled out in a text are encoded as plain text, as in xlpretrain (`split_special_tokens`), except
    the mask. A third-party `tokenizer.json` is left to find all special tokens, including the mask, in its own way.
    """
    vocabulary, plain = tokenizer.vocabulary, layout.is_plain
    brought = tokenizer.file_name != Tokenizer.file_name
    roles = ["pad", "unk", *([] if plain else ["cls", "sep", "mask"])]
    settings: _Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": plain or not brought,
        "padding_side": "right" if layout.cls_position == "first" else "left",
        "model_input_names": ["input_ids", *([] if plain else ["token_type_ids"]), "attention_mask"],
        **{f"{role}_token": tokenizer.id_to_token(getattr(vocabulary, role)) for role in roles},
        "bos_token": tokenizer.id_to_token(vocabulary.eod if plain else vocabulary.cls),
        "eos_token": tokenizer.id_to_token(vocabulary.eod if plain else vocabulary.sep),
    }
    return settings if max_length is None else {**settings, "model_max_length": max_length}


def laid_out_anew(tokenizer: HuggingFaceTokenizer, layout: TokenLayout, *, complete: bool = False) -> _Json | None:
    """A third-party `tokenizer.json` changed to another layout; None if it has this layout already.

    complete: see `post_processor`.
    """
    with optional("tokenizers", "exporting a tokenizer.json"):
        import tokenizers

    brought = json.loads(tokenizer.model)
    changed = {**brought, "post_processor": post_processor(tokenizer, layout, complete=complete)}
    first, second = (tokenizers.Tokenizer.from_str(json.dumps(content)) for content in (brought, changed))
    for texts in (("a",), ("a", "b")):
        one, other = first.encode(*texts), second.encode(*texts)
        if (one.ids, one.type_ids) != (other.ids, other.type_ids):
            return changed
    return None


def _check(model: Any) -> None:
    trainer, rules = model.trainer_spec, model.normalizer_spec
    for wrong, what in (
        (trainer.model_type != trainer.UNIGRAM, "is not a unigram model"),
        (trainer.treat_whitespace_as_suffix, "puts spaces after words"),
        (not rules.escape_whitespaces or not rules.remove_extra_whitespaces, "keeps extra spaces"),
        (any(p.type == p.UNUSED for p in model.pieces), "has unused pieces"),
    ):
        if wrong:
            raise DataError(f"the tokenizer {what}, which transformers does not support; no tokenizer.json for it")


def _is_symbol(piece: Any) -> bool:
    return piece.type in (piece.CONTROL, piece.UNKNOWN)


def _normalizer(rules: Any) -> Iterator[_Json]:
    """SentencePiece's normalization as a sequence of steps.

    `Precompiled` alone is wrong: for a grapheme of less than 6 bytes it normalizes the first character and drops the
    rest, and a longer one is processed character by character and so never composed. Here it gets single characters
    (separated by `_BETWEEN`), and NFC replaces the rules for several characters; `_APART` prevents compositions for
    which there is no rule. An ASCII character never joins the grapheme before it.
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


def _vocabulary(pieces: Sequence[Any], stand_ins: dict[str, str], mask: int | None) -> Iterator[tuple[str, float]]:
    """Pieces and scores, in the order of ids.

    Special tokens other than the mask must never match in a text, so their first characters are replaced by stand-ins
    in all other pieces and in the text. The mask and user-defined pieces must always match, longest first, so their
    scores are higher than all others.
    """
    for token, piece in enumerate(pieces):
        found = 1000.0 * len(piece.piece) - 500.0
        if _is_symbol(piece):
            yield piece.piece, found if token == mask else 0.0
            continue
        text = "".join(stand_ins.get(character, character) for character in piece.piece)
        yield text, found if piece.type == piece.USER_DEFINED else piece.score


def symbol(token: int, piece: str, *, special: bool = True) -> _Json:
    """An added token of `tokenizer.json`, which is matched in a text first (special ones only on request)."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": piece, **flags, "special": special}


def same_ids(content: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """True if a `tokenizer.json` equals the export of a SentencePiece model with any layout.

    Exports of earlier versions never matched the mask in a text, and so equal those with a plain layout.
    """
    try:
        made = [json.loads(json.dumps(tokenizer_json(tokenizer, layout))) for layout in (DOCUMENT, CLS_FIRST)]
    except DataError:
        return False
    keys = ("normalizer", "pre_tokenizer", "model")
    return any(all(content.get(key) == ours[key] for key in keys) for ours in made)


def post_processor(tokenizer: Tokenizer, layout: TokenLayout, *, complete: bool = False) -> _Json:
    """The post-processor that adds the special tokens and segments of a layout.

    complete: add an `eod` after the last text too, as in the examples of a task; a text of a language model need not be
        a whole document.
    """
    single, pair = (
        parts[:-1] if parts[-1].what == "eod" and not complete else parts for parts in map(layout.parts, (1, 2))
    )
    ids = {part.what: getattr(tokenizer.vocabulary, part.what) for part in pair if not part.is_text}
    pieces = {role: tokenizer.id_to_token(token) for role, token in ids.items()}

    def place(part: LayoutPart) -> _Json:
        kind = "Sequence" if part.is_text else "SpecialToken"
        return {kind: {"id": pieces.get(part.what, part.what), "type_id": part.segment}}

    return {
        "type": "TemplateProcessing",
        "single": [place(part) for part in single],
        "pair": [place(part) for part in pair],
        "special_tokens": {
            pieces[role]: {"id": pieces[role], "ids": [ids[role]], "tokens": [pieces[role]]} for role in sorted(ids)
        },
    }


def _replace(pattern: str, content: str) -> _Json:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
