"""Ids of words are SentencePiece's own.

Modules: normalization.py.
"""

import io
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import sentencepiece
from corpus import make_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from data_pipelines.tokenizing.config import TokenizerConfig
from data_pipelines.tokenizing.train import train_tokenizer
from data_pipelines.tokenizing.word_encoder import SCORE_UNIT, WordEncoder, _encoder_of, encode_sentences
from xlpretrain.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer

SENTENCES = [line for document in make_documents(300, seed=5) for line in document.splitlines() if line]
SPECIAL = [spellings[0] for spellings in SPECIAL_TOKENS.values()]
KINDS: list[dict[str, Any]] = [
    {},
    {"byte_fallback": True},
    {"normalization": "identity"},
    {"normalization": "nfkc", "lowercase": True},
    {"normalization": "nmt_nfkc_cf", "strip_accents": True},
]
WORDS = ["the", "The", "----", "--", "===", "aa", "aaaaaaaa", "...", "<sep>", "don't", "(see", "é", "\u2581a", "x=1;"]
WORDS += ["a.b.c.d.e.f", "12345678", "123456789", "Z" * 16, "supercalifragilisticexpialidocious", "", "\x0b", "\x7f"]
WORDS += ["\t", "\n", "\r\n", "a\u2581"]


def joined(sentences: Sequence[str]) -> tuple[bytes, np.ndarray]:
    data = [sentence.encode() for sentence in sentences]
    return b"".join(data), np.cumsum([0, *map(len, data)])[:-1]


def is_as_by_sentencepiece(sentences: Sequence[str], tokenizer: Tokenizer) -> bool:
    ids, counts = encode_sentences(*joined(sentences), tokenizer)
    expected = tokenizer.encode_batch(sentences)
    return ids.tolist() == list(chain.from_iterable(expected)) and counts.tolist() == list(map(len, expected))


def train_elsewhere(**kind: Any) -> Tokenizer:
    model = io.BytesIO()
    pieces = {"control_symbols": SPECIAL[2:], "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=300, minloglevel=2, **{**pieces, **kind}
    )
    return Tokenizer(model.getvalue(), name="elsewhere")


@pytest.fixture(scope="module", params=KINDS, ids=str)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(train_tokenizer(SENTENCES, TokenizerConfig(vocab_size=300, **request.param)), name="x")


def test_ids_are_those_of_sentencepiece(tokenizer: Tokenizer):
    assert isinstance(_encoder_of(tokenizer), WordEncoder)
    words = st.lists(st.sampled_from(WORDS))
    text = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), words.map(" ".join), words.map("".join))

    @settings(max_examples=200)
    @given(st.lists(text, max_size=6))
    def check(sentences: list[str]) -> None:
        assert is_as_by_sentencepiece(sentences, tokenizer)

    check()
    accents = [sentence.replace("a", "\xe4").replace(" t", " \u0442\ufdfa") + "\u200b \xa0." for sentence in SENTENCES]
    for _ in range(2):  # new words, and words that were met
        assert is_as_by_sentencepiece(SENTENCES, tokenizer)
        assert is_as_by_sentencepiece(accents, tokenizer)


@pytest.mark.parametrize(("scores", "exact"), [((-7.25, -8.125), True), ((-7.3, -8.1), False)])
def test_ways_that_tie_are_decided_alike_everywhere_if_scores_add_up_exactly(scores: tuple[float, float], exact: bool):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(train_tokenizer(SENTENCES, TokenizerConfig(vocab_size=300)))
    for piece, spelling, score in zip(model.pieces[-2:], ("Z", "ZZ"), scores, strict=True):
        piece.piece, piece.score = spelling, score
    tokenizer = Tokenizer(model.SerializeToString(), name="x")
    order = np.random.default_rng(1)
    words = ["Z" * length for length in range(1, 16)] + SENTENCES[0].split()
    sentences = [" ".join(order.choice(words, length)) for length in range(1, 400, 7)]
    assert max(map(len, sentences)) > 2000  # too long to be exact: left to SentencePiece
    assert (_encoder_of(tokenizer) is not None) == exact
    assert is_as_by_sentencepiece(sentences, tokenizer)
    ids, _ = WordEncoder(tokenizer, lowest_score=-20, spaces=" ").encode(*joined(sentences))
    assert (ids.tolist() == list(chain.from_iterable(tokenizer.encode_batch(sentences)))) == exact


@pytest.mark.parametrize("spelling", ["-\xe9", "-e", "e\xe9", "(a"])
def test_parts_of_words_have_the_ids_that_they_have_in_the_word(spelling: str):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(train_tokenizer(SENTENCES, TokenizerConfig(vocab_size=300)))
    model.pieces[-1].piece, model.pieces[-1].score = spelling, -0.25
    tokenizer = Tokenizer(model.SerializeToString(), name="x")
    words = ["x-e\u0301", "x-e", "x-\xe9", "(a)", "ee\u0301-e\u0301e", "a(a(e\u0301(-", "-", "e\u0301"]
    assert is_as_by_sentencepiece([f"{a}{b} {b}{a}" for a in words for b in words], tokenizer)
    assert is_as_by_sentencepiece(words, tokenizer)


def test_words_that_share_a_slot_do_not_share_ids(tokenizer: Tokenizer):
    words = [f"{a}{b}{c}" for a in range(300) for b in "abcdefgh-" for c in range(0, 900, 10)]
    assert is_as_by_sentencepiece([" ".join(words[i : i + 50]) for i in range(0, len(words), 50)], tokenizer)


def test_our_models_have_scores_that_add_up_exactly(tokenizer: Tokenizer):
    scores = np.array([tokenizer._processor.get_score(i) for i in range(tokenizer.vocabulary.size)])
    assert np.array_equal(scores / SCORE_UNIT, np.round(scores / SCORE_UNIT))
    assert scores.min() < -3


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"model_type": "bpe"},
        {"split_by_whitespace": False},
        {"treat_whitespace_as_suffix": True},
        {"user_defined_symbols": ["of the"]},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
    ],
    ids=str,
)
def test_models_from_elsewhere_are_left_to_sentencepiece(kind: dict[str, Any]):
    tokenizer = train_elsewhere(**kind)
    assert _encoder_of(tokenizer) is None
    assert is_as_by_sentencepiece([*SENTENCES, "of the of the  end"], tokenizer)


def test_no_sentences_have_no_ids(tokenizer: Tokenizer):
    assert is_as_by_sentencepiece([], tokenizer)
    assert is_as_by_sentencepiece(["", " ", "\u200b", "a"], tokenizer)
