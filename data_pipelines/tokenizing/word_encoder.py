"""Sentences to ids by words that were met before: the ids that SentencePiece gives for each sentence, in less time.

Nearly all words of a text have been there already. What SentencePiece's unigram model makes of a word depends on the
words around it by nothing but rounding: no piece reaches over a space, so the best pieces of a sentence are the best
pieces of each word, but the score by which they are found is a float32 that runs from the start of the sentence. In the
models that we train (`train_tokenizer`) scores are multiples of `SCORE_UNIT`, and sums of these are exact for as long
as they stay under 2^24 units: then there is no rounding, and words are independent. So is their normalization, since no
rule of SentencePiece's spans a space.

The same holds between any two characters of a word that no piece has side by side, if both are ASCII: no rule spans
those. A word that is new is cut there, for its parts have mostly been there too.

Whatever this does not cover (other models, control characters, a boundary of words that is written out, very long
sentences) SentencePiece encodes sentence by sentence.
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
"""A piece's score, a log probability, is a multiple of this: it changes no probability by more than 0.2 %."""

BY_CHARACTER = "by_character"
"""The name that our normalization rules have in a model: none spans a space, or two ASCII characters."""

_NORMALIZERS = {"identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf", BY_CHARACTER}
_UNKNOWN_PENALTY = 10.0  # SentencePiece scores an unknown character so much below its lowest piece
_WRITTEN_BOUNDARY = re.compile(WORD_BOUNDARY.encode())  # which SentencePiece drops at the end of a text
_EXPANDS = np.zeros(256, np.int64)
"""By how many characters more than it has bytes a character may become longer by normalization, by its first byte."""
_EXPANDS[0xC2:0xE0], _EXPANDS[0xE0:0xF0] = 3 - 2, 18 - 3


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type in which shards keep the tokens of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 0xFFFF else np.dtype("<u4")


def encode_sentences(text: bytes, starts: np.ndarray, tokenizer: Tokenizer) -> Ids:
    """The ids of the sentences of a text (UTF-8) that begin at `starts` (int64), the first at 0."""
    encoder = _encoder_of(tokenizer)
    if encoder is not None:
        return encoder.encode(text, starts)
    sentences = _cut(text, starts)
    if tokenizer.strips_sentences:
        sentences = (sentence.decode().strip().encode() for sentence in sentences)
    return _encode_singly(sentences, tokenizer)


class WordEncoder:
    """Encodes by words, for a model of which they are independent."""

    def __init__(self, tokenizer: Tokenizer, *, lowest_score: float, spaces: str):
        self._tokenizer = tokenizer
        # A character takes at most this from a score, and the best score at any place is no worse than all of them.
        self._longest = int(2**24 * SCORE_UNIT / (_UNKNOWN_PENALTY - lowest_score)) // 2 - 2
        self._spaces = [ord(space) for space in spaces]
        pieces = [tokenizer.id_to_token(token) for token in range(tokenizer.vocabulary.size)]
        self._begins_word = np.array([piece.startswith(WORD_BOUNDARY) for piece in pieces])
        self._are_apart, self._alone = _find_cuts(tokenizer, pieces)
        self._table = WordTable(token_dtype(len(pieces)))

    def encode(self, text: bytes, starts: np.ndarray) -> Ids:
        """As `encode_sentences`."""
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
        """The positions of control characters that are not spaces."""
        found = (data < ord(" ")) | (data == 0x7F)
        for space in self._spaces:
            found &= data != space
        return np.flatnonzero(found)

    def _encode(self, data: np.ndarray, words: Words) -> Ids:
        """The ids of words by those of their parts."""
        places, first = ranges(words.starts, words.lengths), offsets(words.lengths)
        # What comes after an ASCII character may be an accent that becomes one with it.
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
        """The ids of words and parts of words by SentencePiece.

        It gets a part with the character before it, as a word, of whose ids those of that character are taken away.
        """
        starts, lengths, goes_on = words
        sizes = lengths + goes_on + 1
        text, first = data.take(ranges(starts - goes_on - 1, sizes)), offsets(sizes)
        text[first] = ord(" ")
        is_ascii = np.ones(len(starts), bool)
        is_ascii[first.searchsorted(np.flatnonzero(text >= 0x80), "right") - 1] = False
        # Of others it is not known that they begin with a piece that begins a word: they may even become nothing.
        others = (text[i : i + n].tobytes() for i, n in zip(first[~is_ascii], sizes[~is_ascii], strict=True))
        singly = _encode_singly(others, self._tokenizer)
        ids, counts = interleave(is_ascii, self._encode_ascii(text[is_ascii.repeat(sizes)], sizes[is_ascii]), singly)
        before = np.where(goes_on, self._alone[data[starts - 1]], 0)  # of the character before
        return ids.take(ranges(offsets(counts) + before, counts - before)), counts - before

    def _encode_ascii(self, text: np.ndarray, sizes: np.ndarray) -> Ids:
        """The ids of words with a space before each, as many at once as do not round."""
        ends = np.cumsum(sizes)
        cuts = ends[np.flatnonzero(np.diff(ends // self._longest))]
        ids, _ = _encode_singly((part.tobytes() for part in np.split(text, cuts)), self._tokenizer)
        first = np.flatnonzero(self._begins_word[ids])
        assert len(first) == len(ends)
        return ids, np.diff(first, append=len(ids))


def _find_cuts(tokenizer: Tokenizer, pieces: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """By two bytes: whether a word can be cut between them; by one: how many ids it has as a word of its own.

    Both are characters of ASCII that are in the vocabulary: of unknown ones, those in a row are one token.
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
    """The bytes of a text with white space before each sentence, and zeros after the last; and where those begin."""
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
    """An encoder, if the model is one whose words are independent."""
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
