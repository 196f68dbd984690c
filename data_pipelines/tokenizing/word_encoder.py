"""Encodes sentences word by word with a cache: the same ids that SentencePiece gives for each sentence, faster.

Nearly all words of a text repeat. In SentencePiece's unigram model, the encoding of a word depends on the words around
it through rounding only: no piece spans a space, so the best segmentation of a sentence is the best segmentation of
each word, but scores are accumulated in float32 from the start of the sentence. In the models that we train
(`train_tokenizer`) scores are multiples of `SCORE_UNIT`, and their sums are exact below 2^24 units. Then there is no
rounding, and words are independent. So is their normalization, since no rule of SentencePiece spans a space.

The same holds between two ASCII characters of a word that are adjacent in no piece, since no rule spans those either.
New words are cut there, because most of their parts are cached.

Everything else (other models, control characters, a literal word boundary symbol, very long sentences) is encoded by
SentencePiece, sentence by sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np

from data_pipelines.tokenizing.word_cache import (
    MARGIN,
    Ids,
    Words,
    WordTable,
    interleave,
    offsets,
    ranges,
    segment_sums,
)
from xlpretrain.data.tokenizers.base import WORD_BOUNDARY, Tokenizer

SCORE_UNIT = 1 / 256
"""Scores (log probabilities) are rounded to multiples of this, which changes a probability by at most 0.2 %."""

BY_CHARACTER = "by_character"
"""Name of our normalization rules in a model. None of them spans a space, or two ASCII characters."""

_NORMALIZERS = {"identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf", BY_CHARACTER}
_UNKNOWN_PENALTY = 10.0  # how far SentencePiece scores unknown characters below the lowest piece
_WRITTEN_BOUNDARY = re.compile(WORD_BOUNDARY.encode())  # SentencePiece drops it at the end of a text
_EXPANDS = np.zeros(256, np.int64)
"""Bound on a character's length after normalization (characters) minus its length before (bytes), by first byte."""
_EXPANDS[0xC2:0xE0], _EXPANDS[0xE0:0xF0] = 3 - 2, 18 - 3


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype for tokens of a vocabulary, as stored in shards."""
    return np.dtype("<u2") if vocab_size <= 0xFFFF else np.dtype("<u4")


def encode_sentences(text: bytes, starts: np.ndarray, tokenizer: Tokenizer) -> Ids:
    """The ids of a text's sentences. text: UTF-8; starts: int64 byte offsets of the sentences, the first 0."""
    encoder = _encoder_of(tokenizer)
    if encoder is not None:
        return encoder.encode(text, starts)
    sentences = _cut(text, starts)
    if tokenizer.strips_sentences:
        sentences = (sentence.decode().strip().encode() for sentence in sentences)
    return _encode_singly(sentences, tokenizer)


class WordEncoder:
    """Encodes word by word, for models in which words are independent."""

    def __init__(self, tokenizer: Tokenizer, *, lowest_score: float, spaces: str):
        self._tokenizer = tokenizer
        # A character lowers the score by at most this much, which bounds the best score at any position.
        self._longest = int(2**24 * SCORE_UNIT / (_UNKNOWN_PENALTY - lowest_score)) // 2 - 2
        self._spaces = [ord(space) for space in spaces]
        pieces = [tokenizer.id_to_token(token) for token in range(tokenizer.vocabulary.size)]
        self._begins_word = np.array([piece.startswith(WORD_BOUNDARY) for piece in pieces])
        self._are_apart, self._alone = _find_cuts(tokenizer, pieces)
        self._table = WordTable(token_dtype(len(pieces)))

    def encode(self, text: bytes, starts: np.ndarray) -> Ids:
        """See `encode_sentences`."""
        data, first = _spaced(text, starts)
        lengths = np.diff(starts, append=len(text))
        beyond = np.flatnonzero(data >= 0x80)
        longer = np.bincount(first.searchsorted(beyond, "right") - 1, _EXPANDS[data[beyond]], len(first))
        is_plain = lengths + longer <= self._longest
        is_plain[first.searchsorted(self._controls(data[:-MARGIN]), "right") - 1] = False
        boundaries = [found.start() for found in _WRITTEN_BOUNDARY.finditer(text)]
        is_plain[starts.searchsorted(boundaries, "right") - 1] = False
        edges = np.flatnonzero(np.diff(data > ord(" "))) + 1
        words, ends = edges[::2], edges[1::2]
        of_sentences = np.diff(words.searchsorted(first), append=len(words))
        if not is_plain.all():
            own = is_plain.repeat(of_sentences)
            words, ends, of_sentences = words[own], ends[own], of_sentences[is_plain]
        ids, counts = self._table.look_up(data, Words(words, ends - words, np.zeros(len(words), bool)), self._encode)
        others = (text[starts[i] : starts[i] + lengths[i]] for i in np.flatnonzero(~is_plain))
        singly = _encode_singly(others, self._tokenizer)
        return interleave(is_plain, (ids, segment_sums(counts, of_sentences)), singly)

    def _controls(self, data: np.ndarray) -> np.ndarray:
        """The positions of control characters other than spaces."""
        found = (data < ord(" ")) | (data == 0x7F)
        for space in self._spaces:
            found &= data != space
        return np.flatnonzero(found)

    def _encode(self, data: np.ndarray, words: Words) -> Ids:
        """The ids of words, from those of their parts."""
        places, first = ranges(words.starts, words.lengths), offsets(words.lengths)
        # An ASCII character may combine with an accent after it.
        is_cut = self._are_apart[data[places - 1], data[places]] & (data[places + 1] < 0x80)
        is_cut[first] = True
        parts = np.flatnonzero(is_cut)
        of_words = np.diff(parts.searchsorted(first), append=len(parts))
        goes_on = np.ones(len(parts), bool)
        goes_on[offsets(of_words)] = False
        lengths = np.diff(parts, append=len(places))
        ids, counts = self._table.look_up(data, Words(places[parts], lengths, goes_on), self._encode_parts)
        return ids, segment_sums(counts, of_words)

    def _encode_parts(self, data: np.ndarray, words: Words) -> Ids:
        """The ids of words and parts of words, from SentencePiece.

        A part is encoded as a word together with the character before it, whose ids are then removed.
        """
        starts, lengths, goes_on = words
        sizes = lengths + goes_on + 1
        text, first = data.take(ranges(starts - goes_on - 1, sizes)), offsets(sizes)
        text[first] = ord(" ")
        is_ascii = np.ones(len(starts), bool)
        is_ascii[first.searchsorted(np.flatnonzero(text >= 0x80), "right") - 1] = False
        # Others might not start with a word-initial piece, or might encode to nothing.
        others = (text[i : i + n].tobytes() for i, n in zip(first[~is_ascii], sizes[~is_ascii], strict=True))
        singly = _encode_singly(others, self._tokenizer)
        ids, counts = interleave(is_ascii, self._encode_ascii(text[is_ascii.repeat(sizes)], sizes[is_ascii]), singly)
        before = np.where(goes_on, self._alone[data[starts - 1]], 0)  # ids of the preceding character
        return ids.take(ranges(offsets(counts) + before, counts - before)), counts - before

    def _encode_ascii(self, text: np.ndarray, sizes: np.ndarray) -> Ids:
        """The ids of words, each preceded by a space, in the largest batches without rounding."""
        ends = np.cumsum(sizes)
        cuts = ends[np.flatnonzero(np.diff(ends // self._longest))]
        ids, _ = _encode_singly((part.tobytes() for part in np.split(text, cuts)), self._tokenizer)
        first = np.flatnonzero(self._begins_word[ids])
        assert len(first) == len(ends)
        return ids, np.diff(first, append=len(ids))


def _find_cuts(tokenizer: Tokenizer, pieces: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tables by pair of bytes: True if a word can be cut between them; and by byte: its number of ids as a word.

    Only ASCII characters in the vocabulary are cut apart: consecutive unknown characters are one token.
    """
    becomes, alone = np.zeros(256, np.uint8), np.zeros(256, np.int64)
    known = {piece for piece in pieces if len(piece) == 1 and piece.isascii()}
    for code in range(ord(" ") + 1, 0x7F):
        ids = tokenizer.encode(chr(code))
        normal = "".join(pieces[token] for token in ids).removeprefix(WORD_BOUNDARY)
        if normal in known:
            becomes[code], alone[code] = ord(normal), len(ids)
    are_joined = np.zeros((256, 256), bool)
    for piece in pieces:
        for a, b in pairwise(piece.encode()):
            are_joined[a, b] = True
    is_known = becomes > 0
    return ~are_joined[np.ix_(becomes, becomes)] & is_known & is_known[:, None], alone


def _spaced(text: bytes, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a text with a space before each sentence and zeros after the last; and the sentences' starts."""
    is_glued = np.frombuffer(b" " + text, np.uint8)[starts] > ord(" ")
    edges = [0, *starts[is_glued].tolist(), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    return np.frombuffer(b" ".join([b"", *parts, bytes(MARGIN)]), np.uint8), starts + 1 + np.cumsum(is_glued)


def _cut(text: bytes, starts: np.ndarray) -> Iterator[bytes]:
    return (text[a:b] for a, b in pairwise([*starts.tolist(), len(text)]))


def _encode_singly(sentences: Iterable[bytes], tokenizer: Tokenizer) -> Ids:
    ids = tokenizer.encode_batch([sentence.decode() for sentence in sentences])
    counts = np.fromiter(map(len, ids), np.int64, len(ids))
    dtype = token_dtype(tokenizer.vocabulary.size)
    return np.fromiter(chain.from_iterable(ids), dtype, int(counts.sum())), counts


@lru_cache(1)
def _encoder_of(tokenizer: Tokenizer) -> WordEncoder | None:
    """An encoder for the tokenizer, or None if words are not independent in its model."""
    if type(tokenizer) is not Tokenizer:
        return None
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.model)
    trained, rules, kinds = model.trainer_spec, model.normalizer_spec, model.SentencePiece
    pieces = [piece for piece in model.pieces if piece.type == kinds.NORMAL]
    units = np.array([piece.score for piece in pieces]) / SCORE_UNIT
    independent = (
        trained.model_type == trained.UNIGRAM
        and not trained.treat_whitespace_as_suffix
        and rules.name in _NORMALIZERS
        and (rules.add_dummy_prefix and rules.remove_extra_whitespaces and rules.escape_whitespaces)
        and np.array_equal(units, np.round(units))
        and all(WORD_BOUNDARY not in piece.piece[1:] for piece in pieces)
        and any(piece.piece == WORD_BOUNDARY for piece in pieces)
        and all(piece.type != kinds.USER_DEFINED for piece in model.pieces)
    )
    if not independent:
        return None
    spaces = "".join(space for space in " \t\n\r" if tokenizer.encode(f"a{space}a") == tokenizer.encode("a a"))
    return WordEncoder(tokenizer, lowest_score=float(units.min()) * SCORE_UNIT, spaces=spaces)
