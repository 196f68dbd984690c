"""Sentences to ids by words that were met before: the ids that SentencePiece gives for each sentence, in less time.

Nearly all words of a text have been there already. What SentencePiece's unigram model makes of a word depends on the
words around it by nothing but rounding: no piece reaches over a space, so the best pieces of a sentence are the best
pieces of each word, but the score by which they are found is a float32 that runs from the start of the sentence. In the
models that we train (`train_tokenizer`) scores are multiples of `SCORE_UNIT`, and sums of these are exact for as long
as they stay under 2^24 units: then there is no rounding, and words are independent. Whatever this does not cover
(other models, characters beyond ASCII, very long sentences) SentencePiece encodes sentence by sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np

from xlpretrain.data.tokenizer import WORD_BOUNDARY, Tokenizer

SCORE_UNIT = 1 / 256
"""A piece's score, a log probability, is a multiple of this: it changes no probability by more than 0.2 %."""

BY_CHARACTER = "by_character"
"""How normalization rules of ours are called in a model: none spans several ASCII characters."""

_NORMALIZERS = {"identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf", BY_CHARACTER}
_UNKNOWN_PENALTY = 10.0  # SentencePiece scores an unknown character so much below its lowest piece
_LONGEST_WORD, _MOST_PIECES, _TABLE_BITS = 16, 4, 19
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_FIRST = np.tri(_MOST_PIECES + 1, _MOST_PIECES, -1, bool)  # so many of a word's places are taken
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93], np.uint64)

Ids = tuple[np.ndarray, np.ndarray]
"""Those of several texts, one after the other, and how many each has."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type in which shards keep the tokens of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 0xFFFF else np.dtype("<u4")


def encode_sentences(sentences: Sequence[bytes], tokenizer: Tokenizer) -> Ids:
    """The ids of all sentences (UTF-8)."""
    table = _table_of(tokenizer)
    return _encode_singly(sentences, tokenizer) if table is None else table.encode(sentences)


class WordTable:
    """The ids of words of up to 16 characters and four pieces, as far as they were met; each slot has the latest.

    low, high: the first and the next eight bytes of the word in a slot, by which it is known; zero: none yet.
    """

    def __init__(self, tokenizer: Tokenizer, *, lowest_score: float, spaces: str):
        self._tokenizer = tokenizer
        # A character takes at most this from a score, and the best score at any place is no worse than all of them.
        self._longest = int(2**24 * SCORE_UNIT / (_UNKNOWN_PENALTY - lowest_score)) // 2 - 2
        self._is_odd = np.ones(256, bool)
        self._is_odd[ord("!") : ord("~") + 1] = False
        self._is_odd[list(map(ord, spaces))] = False
        pieces = map(tokenizer.piece, range(tokenizer.vocabulary.size))
        self._begins = np.array([piece.startswith(WORD_BOUNDARY) for piece in pieces])
        self._low, self._high = np.zeros((2, 1 << _TABLE_BITS), np.uint64)
        self._ids = np.zeros((1 << _TABLE_BITS, _MOST_PIECES), token_dtype(tokenizer.vocabulary.size))
        self._counts = np.zeros(1 << _TABLE_BITS, np.uint8)

    def encode(self, sentences: Sequence[bytes]) -> Ids:
        """As `encode_sentences`."""
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        data = np.frombuffer(b" ".join([b"", *sentences, bytes(_LONGEST_WORD)]), np.uint8)
        first = np.cumsum(lengths + 1) - lengths  # bytes of the sentences
        is_plain = lengths <= self._longest
        is_plain[first.searchsorted(np.flatnonzero(self._is_odd[data[:-_LONGEST_WORD]]), "right") - 1] = False
        edges = np.flatnonzero(np.diff(data > ord(" "))) + 1
        starts, stops = edges[::2], edges[1::2]
        words = np.diff(starts.searchsorted(first), append=len(starts))  # of each sentence
        if not is_plain.all():
            own = is_plain.repeat(words)
            starts, stops, words = starts[own], stops[own], words[is_plain]
        ids, counts = self._encode_words(data, starts, stops - starts)
        of_sentences = np.diff(np.concatenate([[0], np.cumsum(counts)])[np.concatenate([[0], np.cumsum(words)])])
        other = [sentence for sentence, plain in zip(sentences, is_plain.tolist(), strict=True) if not plain]
        return _interleave(is_plain, (ids, of_sentences), _encode_singly(other, self._tokenizer))

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
        """The ids of words by SentencePiece, which gets as many at once as do not round."""
        text = data.tobytes()
        words = [text[a:b] for a, b in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths + 1) // self._longest)) + 1
        bounds = [0, *cuts.tolist(), len(words)]
        ids, _ = _encode_singly([b" ".join(words[a:b]) for a, b in pairwise(bounds)], self._tokenizer)
        begins = np.flatnonzero(self._begins[ids])
        assert len(begins) == len(words)
        return ids, np.diff(begins, append=len(ids))

    def _learn(self, slots: np.ndarray, low: np.ndarray, high: np.ndarray, lengths: np.ndarray, new: Ids) -> None:
        ids, counts = new
        small = (lengths <= _LONGEST_WORD) & (counts <= _MOST_PIECES)
        slots, begins = slots[small], (np.cumsum(counts) - counts)[small]
        self._low[slots], self._high[slots], self._counts[slots] = low[small], high[small], counts[small]
        self._ids[slots] = np.append(ids, [0] * _MOST_PIECES)[begins[:, None] + np.arange(_MOST_PIECES)]


def _encode_singly(sentences: Sequence[bytes], tokenizer: Tokenizer) -> Ids:
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
