"""Sentences to ids by words that were met before: the ids that SentencePiece gives for each sentence, in less time.

Nearly all words of a text have been there already. What SentencePiece's unigram model makes of a word depends on the
words around it by nothing but rounding: no piece reaches over a space, so the best pieces of a sentence are the best
pieces of each word, but the score by which they are found is a float32 that runs from the start of the sentence. In the
models that we train (`train_tokenizer`) scores are multiples of `SCORE_UNIT`, and sums of these are exact for as long
as they stay under 2^24 units: then there is no rounding, and words are independent. So is their normalization, since no
rule of SentencePiece's spans a space. Whatever this does not cover (other models, control characters, very long
sentences) SentencePiece encodes sentence by sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain, compress, pairwise

import numpy as np

from xlpretrain.data.tokenizer import WORD_BOUNDARY, Tokenizer

SCORE_UNIT = 1 / 256
"""A piece's score, a log probability, is a multiple of this: it changes no probability by more than 0.2 %."""

BY_CHARACTER = "by_character"
"""How normalization rules of ours are called in a model: none spans a space."""

_NORMALIZERS = {"identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf", BY_CHARACTER}
_UNKNOWN_PENALTY = 10.0  # SentencePiece scores an unknown character so much below its lowest piece
_LONGEST_WORD, _MOST_PIECES, _TABLE_BITS = 16, 4, 19
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_EXPANDS = np.zeros(256, np.int64)
"""By how many characters more than it has bytes a character may become longer by normalization, by its first byte."""
_EXPANDS[0xC2:0xE0], _EXPANDS[0xE0:0xF0] = 3 - 2, 18 - 3
_FIRST = np.tri(_MOST_PIECES + 1, _MOST_PIECES, -1, bool)  # so many of a word's places are taken
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93], np.uint64)

Ids = tuple[np.ndarray, np.ndarray]
"""Those of several texts, one after the other, and how many each has."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type in which shards keep the tokens of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 0xFFFF else np.dtype("<u4")


def encode_sentences(text: bytes, starts: np.ndarray, tokenizer: Tokenizer) -> Ids:
    """The ids of the sentences of a text (UTF-8) that begin at `starts` (int64), the first at 0."""
    table = _table_of(tokenizer)
    return _encode_singly(_cut(text, starts), tokenizer) if table is None else table.encode(text, starts)


class WordTable:
    """The ids of words of up to 16 characters and four pieces, as far as they were met; each slot has the latest.

    low, high: the first and the next eight bytes of the word in a slot, by which it is known; zero: none yet.
    """

    def __init__(self, tokenizer: Tokenizer, *, lowest_score: float, spaces: str):
        self._tokenizer = tokenizer
        # A character takes at most this from a score, and the best score at any place is no worse than all of them.
        self._longest = int(2**24 * SCORE_UNIT / (_UNKNOWN_PENALTY - lowest_score)) // 2 - 2
        self._is_control = np.arange(256) < ord(" ")
        self._is_control[0x7F] = True
        self._is_control[list(map(ord, spaces))] = False
        pieces = map(tokenizer.piece, range(tokenizer.vocabulary.size))
        self._begins = np.array([piece.startswith(WORD_BOUNDARY) for piece in pieces])
        self._low, self._high = np.zeros((2, 1 << _TABLE_BITS), np.uint64)
        self._ids = np.zeros((1 << _TABLE_BITS, _MOST_PIECES), token_dtype(tokenizer.vocabulary.size))
        self._counts = np.zeros(1 << _TABLE_BITS, np.uint8)

    def encode(self, text: bytes, starts: np.ndarray) -> Ids:
        """As `encode_sentences`."""
        data, first = _spaced(text, starts)
        lengths = np.diff(starts, append=len(text))
        beyond = np.flatnonzero(data >= 0x80)
        longer = np.bincount(first.searchsorted(beyond, "right") - 1, _EXPANDS[data[beyond]], len(first))
        is_plain = lengths + longer <= self._longest
        is_plain[first.searchsorted(np.flatnonzero(self._is_control[data[:-_LONGEST_WORD]]), "right") - 1] = False
        edges = np.flatnonzero(np.diff(data > ord(" "))) + 1
        begins, ends = edges[::2], edges[1::2]
        words = np.diff(begins.searchsorted(first), append=len(begins))  # of each sentence
        if not is_plain.all():
            own = is_plain.repeat(words)
            begins, ends, words = begins[own], ends[own], words[is_plain]
        ids, counts = self._encode_words(data, begins, ends - begins)
        of_sentences = np.diff(np.concatenate([[0], np.cumsum(counts)])[np.concatenate([[0], np.cumsum(words)])])
        others = compress(_cut(text, starts), (~is_plain).tolist())
        return _interleave(is_plain, (ids, of_sentences), _encode_singly(others, self._tokenizer))

    def _encode_words(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Ids:
        eight = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the eight bytes from each on
        low = eight[starts] & _MASKS[np.minimum(lengths, 8)]
        high = eight[starts + 8] & _MASKS[np.clip(lengths - 8, 0, 8)]
        slots = (((low * _MIX[0]) ^ (high * _MIX[1])) * _MIX[2] >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
        known = (self._low[slots] == low) & (self._high[slots] == high) & (lengths <= _LONGEST_WORD)
        counts = self._counts[slots[known]]
        old = self._ids.take(slots[known], axis=0)[_FIRST.take(counts, axis=0)], counts
        new = self._encode_new(data, starts[~known], lengths[~known])
        self._learn(slots[~known], low[~known], high[~known], lengths[~known], new)
        return _interleave(known, old, new)

    def _encode_new(self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Ids:
        """The ids of words by SentencePiece, which gets as many words of ASCII at once as do not round."""
        text = data.tobytes()
        words = [text[a:b] for a, b in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]
        is_ascii = np.fromiter(map(bytes.isascii, words), bool, len(words))
        plain = list(compress(words, is_ascii.tolist()))
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths[is_ascii] + 1) // self._longest)) + 1
        bounds = [0, *cuts.tolist(), len(plain)]
        ids, _ = _encode_singly([b" ".join(plain[a:b]) for a, b in pairwise(bounds)], self._tokenizer)
        begins = np.flatnonzero(self._begins[ids])
        assert len(begins) == len(plain)
        # Of others it is not known that they begin with a piece that begins a word: they may even become nothing.
        others = _encode_singly(list(compress(words, (~is_ascii).tolist())), self._tokenizer)
        return _interleave(is_ascii, (ids, np.diff(begins, append=len(ids))), others)

    def _learn(self, slots: np.ndarray, low: np.ndarray, high: np.ndarray, lengths: np.ndarray, new: Ids) -> None:
        ids, counts = new
        small = (lengths <= _LONGEST_WORD) & (counts <= _MOST_PIECES)
        slots, begins = slots[small], (np.cumsum(counts) - counts)[small]
        self._low[slots], self._high[slots], self._counts[slots] = low[small], high[small], counts[small]
        self._ids[slots] = np.append(ids, [0] * _MOST_PIECES)[begins[:, None] + np.arange(_MOST_PIECES)]


def _spaced(text: bytes, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a text with white space before each sentence, and zeros after the last; and where those begin."""
    data = np.frombuffer(b" " + text + bytes(_LONGEST_WORD), np.uint8)
    is_glued = data[starts] > ord(" ")
    if not is_glued.any():
        return data, starts + 1
    return np.insert(data, starts[is_glued] + 1, ord(" ")), starts + 1 + np.cumsum(is_glued)


def _cut(text: bytes, starts: np.ndarray) -> Iterator[bytes]:
    return (text[a:b] for a, b in pairwise([*starts.tolist(), len(text)]))


def _encode_singly(sentences: Iterable[bytes], tokenizer: Tokenizer) -> Ids:
    ids = tokenizer.encode_batch([sentence.decode() for sentence in sentences])
    counts = np.fromiter(map(len, ids), np.int64, len(ids))
    dtype = token_dtype(tokenizer.vocabulary.size)
    return np.fromiter(chain.from_iterable(ids), dtype, int(counts.sum())), counts


def _interleave(which: np.ndarray, yes: Ids, no: Ids) -> Ids:
    """What is in `yes` where `which` is true, what is in `no` where it is false."""
    counts = np.empty(len(which), np.int64)
    counts[which], counts[~which] = yes[1], no[1]
    is_yes = which.repeat(counts)
    ids = np.empty(len(is_yes), yes[0].dtype)
    ids[is_yes], ids[~is_yes] = yes[0], no[0]
    return ids, counts


@lru_cache(1)
def _table_of(tokenizer: Tokenizer) -> WordTable | None:
    """A table, if the model is one whose words are independent."""
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
    return WordTable(tokenizer, lowest_score=float(units.min()) * SCORE_UNIT, spaces=spaces)
