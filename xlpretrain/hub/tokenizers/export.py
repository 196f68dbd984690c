"""A SentencePiece model as a `tokenizer.json` that gives the same ids for any text. Torch-free.

The stock conversion of transformers does not: see `_normalizer` and `_vocabulary`. The file is JSON that the library
`tokenizers` reads; writing it takes no library.
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
"""The original of a third-party tokenizer, exported beside a `tokenizer.json` that puts other symbols around texts."""

_APART, _BETWEEN, _STRANGE = "\ufff0", "\ufff1", "\ufff2"
"""Code points that no text has (unassigned), and that are no part of another's grapheme."""
_FIRST_STAND_IN = 0xF0000  # for private use
_MASK = chr(0x100000)  # likewise
_Json = dict[str, Any]


def tokenizer_json(tokenizer: Tokenizer, layout: TokenLayout) -> _Json:
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
    mask = None if layout.is_plain else tokenizer.vocabulary.mask
    strange = [_APART, _BETWEEN, _MASK, *stand_ins.values()]
    if any(character in piece.piece for piece in pieces for character in [*strange, _STRANGE]):
        raise DataError("the vocabulary has pieces with code points that are set aside here (U+FFF0, U+F0000 on)")
    normalizers = [_replace(characters(strange), _STRANGE)]
    if mask is not None:
        normalizers.append({"type": "Replace", "pattern": {"String": pieces[mask].piece}, "content": _MASK})
    normalizers += _normalizer(model.normalizer_spec)
    normalizers += [_replace(characters([first]), stand_in) for first, stand_in in stand_ins.items()]
    if model.normalizer_spec.add_dummy_prefix:
        normalizers.append({"type": "Prepend", "prepend": WORD_BOUNDARY})
    if mask is not None:  # the space before it is part of the word that it hides
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
        "post_processor": post_processor(tokenizer, layout),
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

    Special symbols that a text spells out are text, as they are here (`split_special_tokens`), but for the mask. A
    `tokenizer.json` that was brought along has its own way to find that, with all other symbols.
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


def laid_out_anew(tokenizer: HuggingFaceTokenizer, layout: TokenLayout) -> _Json | None:
    """A `tokenizer.json` that was brought along, with the symbols of a layout around texts; None: it has them."""
    with optional("tokenizers", "exporting a tokenizer.json"):
        import tokenizers

    brought = json.loads(tokenizer.model)
    changed = {**brought, "post_processor": post_processor(tokenizer, layout)}
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


def _vocabulary(pieces: Sequence[Any], stand_ins: dict[str, str], mask: int | None) -> Iterator[tuple[str, float]]:
    """Pieces and scores, in the order of ids.

    Special symbols but the mask must never be found in a text: in all other pieces, and in the text, stand-ins replace
    the characters that symbols begin with. The mask, and a user-defined piece, always are, the longest one: their
    scores are beyond all others.
    """
    for token, piece in enumerate(pieces):
        found = 1000.0 * len(piece.piece) - 500.0
        if _is_symbol(piece):
            yield piece.piece, found if token == mask else 0.0
            continue
        text = "".join(stand_ins.get(character, character) for character in piece.piece)
        yield text, found if piece.type == piece.USER_DEFINED else piece.score


def symbol(token: int, piece: str, *, special: bool = True) -> _Json:
    """An added token of `tokenizer.json`: found in a text before all else, if it is special only where asked for."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": piece, **flags, "special": special}


def same_ids(content: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """True if a `tokenizer.json` equals the one exported for a SentencePiece model with any template.

    Exports of earlier versions did not find the mask in a text, whatever the template: they equal the plain one.
    """
    try:
        made = [json.loads(json.dumps(tokenizer_json(tokenizer, layout))) for layout in (DOCUMENT, CLS_FIRST)]
    except DataError:
        return False
    keys = ("normalizer", "pre_tokenizer", "model")
    return any(all(content.get(key) == ours[key] for key in keys) for ours in made)


def post_processor(tokenizer: Tokenizer, layout: TokenLayout) -> _Json:
    """The special tokens and segments that a layout puts around texts.

    An `eod` after the last text ends a document, which a text need not do: the tokenizer does not add it.
    """
    single, pair = (parts[:-1] if parts[-1].what == "eod" else parts for parts in map(layout.parts, (1, 2)))
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
